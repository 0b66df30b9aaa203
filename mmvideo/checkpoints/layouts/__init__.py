"""How public files name their tensors, and how to tell what a file is."""

from mmvideo.checkpoints.layouts.families import (
    FAMILIES,
    LORA_FAMILIES,
    MOTION_FAMILIES,
    Betas,
    Family,
    is_published,
)
from mmvideo.checkpoints.layouts.identify import Identity, identify
from mmvideo.checkpoints.layouts.ip_adapter import (
    IP_ADAPTER_LAYOUTS,
    ip_adapter_kind,
    ip_adapter_to_ours,
)
from mmvideo.checkpoints.layouts.lora import (
    LORA_LAYOUTS,
    is_lora,
    lora_base,
    lora_kind,
    lora_to_ours,
    split_lora_key,
)
from mmvideo.checkpoints.layouts.motion import ANIMATEDIFF
from mmvideo.checkpoints.layouts.recognise import is_original, position_count, recognise
from mmvideo.checkpoints.layouts.sparsectrl import SPARSECTRL
from mmvideo.checkpoints.layouts.table import Change, Layout, Row

__all__ = [
    'ANIMATEDIFF',
    'FAMILIES',
    'IP_ADAPTER_LAYOUTS',
    'LORA_FAMILIES',
    'LORA_LAYOUTS',
    'MOTION_FAMILIES',
    'SPARSECTRL',
    'Betas',
    'Change',
    'Family',
    'Identity',
    'Layout',
    'Row',
    'identify',
    'ip_adapter_kind',
    'ip_adapter_to_ours',
    'is_lora',
    'is_original',
    'is_published',
    'lora_base',
    'lora_kind',
    'lora_to_ours',
    'position_count',
    'recognise',
    'split_lora_key',
]

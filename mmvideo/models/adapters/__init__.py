"""Small changes of a model at run time: LoRA, IP-Adapter, textual inversion, ControlNet, ..."""

from mmvideo.models.adapters.base import Adapter
from mmvideo.models.adapters.controlnet import ControlNet, SparseCtrl
from mmvideo.models.adapters.ip_adapter import IPAdapter
from mmvideo.models.adapters.lora import LoRA, MotionLoRA
from mmvideo.models.adapters.textual_inversion import TextualInversion

__all__ = [
    'Adapter',
    'ControlNet',
    'IPAdapter',
    'LoRA',
    'MotionLoRA',
    'SparseCtrl',
    'TextualInversion',
]

"""Everything that the tensors of a file tell about it, for people and for converters.

Only names, shapes and types are looked at, so a file is identified without being read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mmvideo.checkpoints.layouts.families import (
    FAMILIES,
    LORA_FAMILIES,
    MOTION_FAMILIES,
    Betas,
    is_published,
)
from mmvideo.checkpoints.layouts.lora import lora_base, lora_kind, lora_to_ours
from mmvideo.checkpoints.layouts.recognise import is_original, position_count, recognise

# How many tokens wide the prompt of each image model is.
_CONTEXT = {768: 'sd15', 1024: 'sd2', 1280: 'sdxl refiner', 2048: 'sdxl'}
_MOTION = '.motion_modules.'
# Tensors that nobody trains: encodings by a formula, counters, LoRA's alphas.
_CONSTANTS = ('.pe', 'position_ids', '.alpha')
_LDM_PARTS = (
    ('model.diffusion_model.', 'unet'),
    ('model_ema.', 'unet (EMA)'),
    ('first_stage_model.', 'vae'),
    ('cond_stage_model.', 'text_encoder'),
    ('conditioner.embedders.0.', 'text_encoder'),
    ('conditioner.embedders.', 'text_encoder_2'),
    ('control_model.', 'controlnet'),
)
_ONE_PART = {
    'vae': 'vae',
    'svd_vae': 'vae',
    'clip': 'clip',
    'clip_text': 'text_encoder',
    'clip_image': 'image_encoder',
    'textual_inversion': 'vectors',
    'unet': 'unet',
    'svd_unet': 'unet',
    'i2vgen_xl_unet': 'unet',
    'i2vgen_xl': 'unet',
    'hotshot_xl': 'motion_module',
}


@dataclass(frozen=True)
class Part:
    """A share of a file.

    Attributes:
        tensors: How many.
        parameters: Their values, without those that a formula gives.
    """

    tensors: int
    parameters: int


@dataclass(frozen=True)
class Identity:
    """What a file is.

    Attributes:
        family: A key of ``FAMILIES``.
        layout: Whose names it has: 'original', 'diffusers', 'kohya', 'peft', ...
        base: The image model it goes with: 'sd15', 'sd2', 'sdxl', ...; None where unclear.
        precision: Floating types, the most frequent first.
        parts: By name, in the order of the file.
        positions: Frame positions of motion modules.
        mid_block: Whether there is a motion module in the middle.
        widths: Channels of the levels, finest first; empty where there are none.
        rank: Of a LoRA; its smallest and largest.
    """

    family: str
    layout: str
    base: str | None
    precision: tuple[str, ...]
    parts: dict[str, Part]
    positions: int | None = None
    mid_block: bool | None = None
    widths: tuple[int, ...] = ()
    rank: tuple[int, int] | None = None

    @property
    def title(self) -> str:
        """For messages."""
        return FAMILIES[self.family].title

    @property
    def version(self) -> str | None:
        """As the authors count."""
        return FAMILIES[self.family].version

    @property
    def betas(self) -> Betas | None:
        """The noise schedule that the published weights were trained with."""
        return FAMILIES[self.family].betas if is_published(self.family, self.widths) else None

    @property
    def first_channels(self) -> str | None:
        """PIA's official choice of the first input channels on a plain image model."""
        return FAMILIES[self.family].first_channels

    @property
    def norm_scopes(self) -> dict[str, str]:
        """``resnet_norm_scope`` and ``motion_norm_scope``, where the family tells them."""
        return FAMILIES[self.family].norm_scopes

    @property
    def total(self) -> Part:
        """The whole file."""
        parts = self.parts.values()
        return Part(sum(p.tensors for p in parts), sum(p.parameters for p in parts))


def identify(tensors: Mapping[str, Tensor]) -> Identity:
    """What a file is, from the names, shapes and types of its tensors.

    Raises:
        WeightsError: Nothing known.
    """
    family = recognise(tensors)
    motion = family in MOTION_FAMILIES or family.startswith('sparsectrl')
    ours = lora_to_ours(tensors) if family in LORA_FAMILIES else {}
    named = _part_namer(family, tensors)
    names = {key: named(key) for key in tensors}
    parts = {
        part: Part(
            sum(1 for other in names.values() if other == part),
            sum(
                value.numel()
                for key, value in tensors.items()
                if names[key] == part and not key.endswith(_CONSTANTS)
            ),
        )
        for part in dict.fromkeys(names.values())
    }
    types = Counter(str(v.dtype).removeprefix('torch.') for v in tensors.values() if _floats(v))
    return Identity(
        family,
        _layout(family, tensors),
        _base(family, tensors, ours),
        tuple(name for name, _ in types.most_common()),
        parts,
        position_count(tensors) if motion else None,
        any(k.startswith(f'mid_block{_MOTION}') for k in tensors) if motion else None,
        _widths(tensors) if motion else (),
        _ranks(ours),
    )


def _floats(value: Tensor) -> bool:
    return value.is_floating_point()


def _layout(family: str, tensors: Mapping[str, Tensor]) -> str:
    if family in LORA_FAMILIES:
        kind = lora_kind(tensors)
        return 'original' if kind == 'motion_lora' else kind
    if family in ('ldm', 'svd', 'i2vgen_xl', 'controlnet_ldm', 'hotshot_xl'):
        return 'original'
    if family.startswith('ip_adapter'):
        return 'original'
    if family == 'textual_inversion':
        stems = ('emb_params', 'string_to_param', 'clip_')
        return 'a1111' if next(iter(tensors)).startswith(stems) else 'diffusers'
    if family.startswith('clip'):
        return 'transformers'
    if family == 'vae':
        old = any('.mid.block_1.' in key for key in tensors)
        return 'original' if old else 'diffusers'
    return 'original' if is_original(tensors) else 'diffusers'


def _part_namer(family: str, tensors: Mapping[str, Tensor]) -> Callable[[str], str]:
    if family in LORA_FAMILIES:
        return _lora_part
    if family.startswith('ip_adapter'):
        return lambda key: key.split('.')[0]
    if family in ('ldm', 'svd', 'controlnet_ldm'):
        return _ldm_part
    if family in MOTION_FAMILIES:
        whole = family in ('pia_unet', 'unet_motion')
        other = 'unet' if whole else 'conv_in'
        return lambda key: 'motion_module' if _MOTION in key else other
    if family.startswith('sparsectrl'):
        return lambda key: 'motion_module' if _MOTION in key else 'controlnet'
    part = _ONE_PART.get(family, family)
    return lambda key: part


def _lora_part(key: str) -> str:
    for part, stems in (
        ('text_encoder_2', ('lora_te2_', 'text_encoder_2.')),
        ('text_encoder', ('lora_te', 'text_encoder.')),
    ):
        if key.startswith(stems):
            return part
    return 'text_encoder' if 'encoder.layers.' in key else 'unet'


def _ldm_part(key: str) -> str:
    return next((part for prefix, part in _LDM_PARTS if key.startswith(prefix)), 'other')


def _base(family: str, tensors: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str | None:
    base = FAMILIES[family].base
    sized = family in MOTION_FAMILIES or family.startswith('sparsectrl')
    if base is not None and (not sized or is_published(family, _widths(tensors))):
        return base
    if ours:
        return lora_base(ours)
    if family == 'textual_inversion':
        if 'clip_g' in tensors:
            return 'sdxl'
        return _CONTEXT.get(next(iter(tensors.values())).shape[-1])
    for key, value in tensors.items():
        context = key.endswith(('.attn2.to_k.weight', '.to_k_ip.weight'))
        if context and _MOTION not in key and 'temporal_' not in key:
            return _CONTEXT.get(value.shape[1])
    if family == 'ldm':
        return 'sdxl' if any(key.startswith('conditioner.') for key in tensors) else None
    return None


def _widths(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Channels of the down stages, from the first module of each."""
    found: dict[int, int] = {}
    for key, value in tensors.items():
        if key.startswith('down_blocks.') and key.endswith('proj_in.weight') and _MOTION in key:
            found.setdefault(int(key.split('.')[1]), value.shape[0])
    return tuple(found[level] for level in sorted(found))


def _ranks(ours: Mapping[str, Tensor]) -> tuple[int, int] | None:
    ranks = [value.shape[0] for key, value in ours.items() if key.endswith('.lora_A.weight')]
    return (min(ranks), max(ranks)) if ranks else None

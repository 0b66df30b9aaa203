"""How public files name their tensors: tables of keys, used in both directions.

A layout is a table of rows ``theirs <-> ours``; ours are diffusers' names, which the trunk has.
A key that no row matches is an error in either direction, so nothing is dropped in silence.
``recognise`` tells a file's family from what is in it, never from its name.

Source of the names: guoyww/AnimateDiff animatediff/models/motion_module.py (original layout),
diffusers MotionAdapter (ours), open-mmlab/PIA (conv_in of the condition).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mmvideo.errors import WeightsError

_PLACEHOLDERS = {
    'module': r'(?:(?:down|up)_blocks\.\d+|mid_block)\.motion_modules\.\d+',
    'layer': r'\d+',
    'copy': r'\d+',
    'linear': r'to_q|to_k|to_v|to_out\.0',
    'inner': r'net\.0\.proj|net\.2',
    'kind': r'weight|bias',
}


@dataclass(frozen=True)
class Row:
    """One kind of key under two names.

    Attributes:
        theirs: Template in the file's names, with placeholders such as ``{module}``.
        ours: The same key in diffusers' names.
        copies: Values of ``{copy}`` in ``theirs``: the file repeats our one tensor so often.
    """

    theirs: str
    ours: str
    copies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A table of rows, and the two translations that follow from it."""

    name: str
    rows: tuple[Row, ...]

    @cached_property
    def _theirs(self) -> list[tuple[re.Pattern[str], Row]]:
        return [(_pattern(row.theirs), row) for row in self.rows]

    @cached_property
    def _ours(self) -> list[tuple[re.Pattern[str], Row]]:
        return [(_pattern(row.ours), row) for row in self.rows]

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate a file's names into diffusers' names.

        Raises:
            WeightsError: A key that the table does not know, or copies that differ.
        """
        found: dict[str, Tensor] = {}
        unknown = []
        for key, value in tensors.items():
            match, row = _first(self._theirs, key)
            if match is None or row is None:
                unknown.append(key)
                continue
            name = row.ours.format(**match.groupdict())
            if name in found and not torch.equal(found[name], value):
                raise WeightsError(f'{key} differs from its other copy, both are {name}')
            found[name] = value
        self._refuse(unknown)
        return found

    def to_theirs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate diffusers' names into the file's.

        Raises:
            WeightsError: A key that the table does not know.
        """
        found: dict[str, Tensor] = {}
        unknown = []
        for key, value in tensors.items():
            match, row = _first(self._ours, key)
            if match is None or row is None:
                unknown.append(key)
                continue
            for copy in row.copies or ('',):
                found[row.theirs.format(copy=copy, **match.groupdict())] = value
        self._refuse(unknown)
        return found

    def _refuse(self, unknown: list[str]) -> None:
        if unknown:
            shown = ', '.join(unknown[:5])
            raise WeightsError(f'{len(unknown)} tensors are no part of {self.name}: {shown}')


_T = '{module}.temporal_transformer'
_B = '.transformer_blocks.{layer}'
ANIMATEDIFF = Layout(
    'an AnimateDiff motion module',
    (
        Row(_T + '.norm.{kind}', '{module}.norm.{kind}'),
        Row(_T + '.proj_in.{kind}', '{module}.proj_in.{kind}'),
        Row(_T + '.proj_out.{kind}', '{module}.proj_out.{kind}'),
        Row(
            _T + _B + '.attention_blocks.0.{linear}.{kind}',
            '{module}' + _B + '.attn1.{linear}.{kind}',
        ),
        Row(
            _T + _B + '.attention_blocks.1.{linear}.{kind}',
            '{module}' + _B + '.attn2.{linear}.{kind}',
        ),
        Row(
            _T + _B + '.attention_blocks.{copy}.pos_encoder.pe',
            '{module}' + _B + '.pos_embed.pe',
            copies=('0', '1'),
        ),
        Row(_T + _B + '.norms.0.{kind}', '{module}' + _B + '.norm1.{kind}'),
        Row(_T + _B + '.norms.1.{kind}', '{module}' + _B + '.norm2.{kind}'),
        Row(_T + _B + '.ff_norm.{kind}', '{module}' + _B + '.norm3.{kind}'),
        Row(_T + _B + '.ff.{inner}.{kind}', '{module}' + _B + '.ff.{inner}.{kind}'),
        # pia.ckpt has the condition's convolution beside the modules.
        Row('conv_in.{kind}', 'conv_in.{kind}'),
    ),
)


@dataclass(frozen=True)
class Family:
    """What a file is, and the group norm scopes it was trained with.

    Attributes:
        title: For messages.
        resnet_norm_scope: 'frame' or 'clip'; None where the family does not tell.
        motion_norm_scope: Likewise, of the motion modules.
    """

    title: str
    resnet_norm_scope: str | None = None
    motion_norm_scope: str | None = None


FAMILIES = {
    'sparsectrl_scribble': Family('a SparseCtrl encoder (scribble)', 'frame', 'frame'),
    'sparsectrl_rgb': Family('a SparseCtrl encoder (rgb)', 'frame', 'frame'),
    'motion_lora': Family('a MotionLoRA'),
    'domain_adapter': Family("AnimateDiff's domain adapter"),
    'kohya_lora': Family('a LoRA of kohya'),
    'ldm': Family('a full checkpoint in the original Stable Diffusion layout'),
    'pia': Family('PIA condition and motion modules', 'clip', 'frame'),
    'pia_unet': Family('a whole UNet of the PIA trainer', 'clip', 'frame'),
    'unet_motion': Family('a whole UNet with motion modules'),
    'animatelcm': Family('AnimateLCM motion modules', 'frame', 'frame'),
    'animatediff_v1': Family('AnimateDiff v1 motion modules', 'clip', 'frame'),
    'animatediff_v2': Family('AnimateDiff v2 motion modules', 'frame', 'frame'),
    'animatediff_v3': Family('AnimateDiff v3 motion modules', 'frame', 'frame'),
    'animatediff_sdxl': Family('AnimateDiff SDXL motion modules', 'frame', 'clip'),
    'animatediff': Family('motion modules of no published size'),
    'hotshot_xl': Family('HotShot-XL motion modules'),
    'vae': Family('an AutoencoderKL'),
    'unet': Family('an image UNet'),
    'clip_text': Family('a CLIP text encoder'),
}
MOTION_FAMILIES = (
    'pia', 'pia_unet', 'unet_motion', 'animatelcm', 'animatediff_v1', 'animatediff_v2',
    'animatediff_v3', 'animatediff_sdxl', 'animatediff',
)  # fmt: skip
_PE = re.compile(r'.*(?:pos_encoder|pos_embed)\.pe')


def recognise(tensors: Mapping[str, Tensor]) -> str:
    """The family of a file, a key of ``FAMILIES``, from its tensors.

    Args:
        tensors: As ``read_tensors`` gives them, in any layout.

    Raises:
        WeightsError: Nothing known; names the first keys.
    """
    for family, sign in _SIGNS:
        if any(sign.fullmatch(key) for key in tensors):
            return _lora_kind(tensors) if family == 'lora' else family
    if any('motion_modules.' in key for key in tensors):
        return _motion_family(tensors)
    if any('.resnets.' in key for key in tensors) and 'conv_in.weight' in tensors:
        return 'unet'
    raise WeightsError(
        f'these {len(tensors)} tensors are of no known kind; the first are: '
        + ', '.join(list(tensors)[:5])
    )


# The first match wins: each sign would also fit a family further down.
_SIGNS = tuple(
    (family, re.compile(sign))
    for family, sign in (
        ('sparsectrl_scribble', r'controlnet_cond_embedding\.conv_in\.weight'),
        ('sparsectrl_rgb', r'controlnet_cond_embedding\.weight'),
        ('lora', r'.*\.processor\.to_q_lora\.down\.weight'),
        ('kohya_lora', r'lora_(?:unet|te)_.*'),
        ('ldm', r'model\.diffusion_model\..*'),
        ('hotshot_xl', r'.*temporal_attentions\.\d+\..*'),
        ('vae', r'encoder\.conv_in\.weight'),
        ('clip_text', r'(?:.*\.)?token_embedding\.weight'),
    )
)


def _lora_kind(tensors: Mapping[str, Tensor]) -> str:
    return 'motion_lora' if any('motion_modules.' in key for key in tensors) else 'domain_adapter'


def _motion_family(tensors: Mapping[str, Tensor]) -> str:
    conv = tensors.get('conv_in.weight')
    # PIA before v3, whose motion modules look the same: elsewhere the convolution gets lost.
    conditioned = conv is not None and conv.shape[1] == 9
    if any('.resnets.' in key for key in tensors):
        return 'pia_unet' if conditioned else 'unet_motion'
    if conditioned:
        return 'pia'
    positions = position_count(tensors)
    if any(key.startswith('mid_block.motion_modules.') for key in tensors):
        return 'animatelcm' if positions is None else 'animatediff_v2'
    if any(key.startswith('down_blocks.3.motion_modules.') for key in tensors):
        return {24: 'animatediff_v1', 32: 'animatediff_v3'}.get(positions or 0, 'animatediff')
    widths = [v.shape[0] for k, v in tensors.items() if k.startswith('down_blocks.0.')]
    return 'animatediff_sdxl' if positions == 32 and widths and 320 in widths else 'animatediff'


def position_count(tensors: Mapping[str, Tensor]) -> int | None:
    """How many frame positions a file's encodings have; None where it has none."""
    return next((v.shape[1] for k, v in tensors.items() if _PE.fullmatch(k)), None)


def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r'\{(\w+)\}', template)
    return re.compile(
        ''.join(
            f'(?P<{piece}>{_PLACEHOLDERS[piece]})' if index % 2 else re.escape(piece)
            for index, piece in enumerate(pieces)
        )
    )


def _first(
    rows: list[tuple[re.Pattern[str], Row]], key: str
) -> tuple[re.Match[str] | None, Row | None]:
    for pattern, row in rows:
        if match := pattern.fullmatch(key):
            return match, row
    return None, None

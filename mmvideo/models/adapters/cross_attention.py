"""The cross-attention layers of a denoiser, and how strongly each listens to pictures.

N batch, T frames, H W latent size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmvideo.errors import InputError, UserError, nearest
from mmvideo.models.adapters.base import is_timeline
from mmvideo.models.unet.attention import Attention

# How public IP-Adapter files count the layers: the middle comes last.
_STAGES = ('down_blocks', 'up_blocks', 'mid_block')
_LAYER = re.compile(
    r'(?:(?P<block>\d+)\.)?attentions\.(?P<transformer>\d+)\.transformer_blocks\.\d+\.attn2'
)


@dataclass(frozen=True)
class CrossAttention:
    """One layer from places to prompt tokens.

    Attributes:
        part: 'down', 'up' or 'mid'.
        block: number of the stage in its part, 0 in the middle.
        transformer: number of the transformer in the stage.
        level: halvings of the latent's size at this layer.
        module: the layer.
    """

    part: str
    block: int
    transformer: int
    level: int
    module: Attention


def cross_attentions(unet: nn.Module) -> list[CrossAttention]:
    """Every cross-attention layer of a ``VideoUNet``, in the order of public IP-Adapter files."""
    levels = len(unet.block_out_channels)  # type: ignore[arg-type]
    found = []
    for stage in _STAGES:
        part = stage.split('_')[0]
        for name, module in unet.get_submodule(stage).named_modules():
            match = _LAYER.fullmatch(name)
            if match is None:
                continue
            assert isinstance(module, Attention)
            block = int(match['block'] or 0)
            level = {'down': block, 'up': levels - 1 - block, 'mid': levels - 1}[part]
            found.append(CrossAttention(part, block, int(match['transformer']), level, module))
    return found


def scale_at(scale: Any, layer: CrossAttention) -> Any:
    """The scale of one layer: a number, or one for each picture; either may be a tensor [T].

    Args:
        scale: a number; a list of numbers, one for each picture; or by blocks as diffusers has
            it: ``{'down': {'block_2': [0, 1]}, 'mid': 1, 'up': 0.5}``, where a list of a block
            is for its transformers one by one, and blocks that are not named do not listen. In
            place of any number there may be a timeline over frames, such as ``{0: 1.0, 8: 0.2}``,
            which the editor makes a tensor; one over steps only in place of the whole.
    """
    if not isinstance(scale, Mapping):
        return scale
    value = scale.get(layer.part, 0.0)
    if isinstance(value, Mapping):
        value = value.get(f'block_{layer.block}', 0.0)
    if isinstance(value, (list, tuple)):
        value = value[0] if len(value) == 1 else value[layer.transformer]
    return value


def check_scale(
    scale: Any,
    layers: Sequence[CrossAttention] = (),
    name: str = 'ip_adapter_scale',
    error: type[UserError] = InputError,
) -> None:
    """Refuse a scale that ``scale_at`` cannot read.

    Args:
        scale: see ``scale_at``.
        layers: of the model; without any, only the form is checked.
        name: what it is called in messages.
        error: the kind of error.

    Raises:
        UserError: naming the block, its value and what was expected.
    """
    try:
        _check_scale(name, scale, layers)
    except InputError as fault:
        raise error(str(fault)) from None


def is_silent(scale: Any) -> bool:
    """Whether no layer, no picture and no frame has a scale other than zero."""
    if isinstance(scale, Tensor):
        return not scale.any()
    if isinstance(scale, Mapping):
        return all(is_silent(value) for key, value in scale.items() if not _is_setting(key, value))
    if isinstance(scale, (list, tuple)):
        return all(is_silent(value) for value in scale)
    return scale == 0


def _is_setting(key: Any, value: Any) -> bool:
    """Whether an entry of a timeline is about the others, such as its interpolation."""
    return isinstance(key, str) and isinstance(value, (str, bool))


def _check_scale(name: str, scale: Any, layers: Sequence[CrossAttention]) -> None:
    if not isinstance(scale, Mapping) or is_timeline(scale):
        _check_leaf(name, scale)
        return
    _check_names(name, scale, ['down', 'mid', 'up'])
    for part, value in scale.items():
        blocks = sorted({f'block_{layer.block}' for layer in layers if layer.part == part})
        where = f'{name}[{part!r}]'
        entries = {where: value}
        if isinstance(value, Mapping) and not is_timeline(value):
            if part == 'mid':
                raise InputError(f'{where} is a dict: the middle has one block, give a number.')
            _check_names(where, value, blocks)
            entries = {f'{where}[{key!r}]': entry for key, entry in value.items()}
        for place, entry in entries.items():
            _check_block(place, entry, _transformers(layers, part))


def _transformers(layers: Sequence[CrossAttention], part: str) -> int | None:
    counts = [layer.transformer + 1 for layer in layers if layer.part == part]
    return max(counts, default=None)


def _check_block(where: str, value: Any, transformers: int | None) -> None:
    if not isinstance(value, (list, tuple)):
        _check_leaf(where, value)
        return
    if len(value) == 0 or (transformers and len(value) not in (1, transformers)):
        raise InputError(
            f'{where} has {len(value)} scales: expected one, or {transformers or "several"}, one '
            'for each transformer of a block.'
        )
    for entry in value:
        _check_leaf(where, entry)


def _check_leaf(where: str, value: Any) -> None:
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    for entry in entries or [None]:
        if is_timeline(entry):  # the editor checks it against the clip
            continue
        number = isinstance(entry, (int, float)) and not isinstance(entry, bool)
        if not number or not math.isfinite(entry):
            raise InputError(f'{where}={value!r}: expected a finite number, 1 as trained.')


def _check_names(where: str, given: Mapping[str, Any], valid: Sequence[str]) -> None:
    for key in given:
        if valid and key not in valid:
            raise InputError(
                f'{where} names {key!r}, which has no cross-attention.{nearest(key, valid)} '
                f'Expected: {", ".join(valid)}.'
            )

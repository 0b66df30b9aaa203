"""Weights of LoRAs in diffusers' form: by part, block and transformer, as scales by layer."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

from mmvideo.errors import InputError, nearest
from mmvideo.models.adapters.base import is_timeline
from mmvideo.models.adapters.lora import LoRA, scale_at

_SIDES = {'down': 'down_blocks', 'up': 'up_blocks', 'mid': 'mid_block'}


def by_layers(weight: Any, lora: LoRA) -> Any:
    """A weight of ``set_adapters`` as a scale of ``LoRA``.

    Args:
        weight: a number, a timeline, or such as ``{'text_encoder': 0.5, 'unet': {'down': 0.9, 'up':
            {'block_0': 0.6, 'block_1': [0.4, 0.8, 1.0]}}}``.
        lora: whose layers it must have; parts that it leaves alone are skipped.

    Raises:
        InputError: a part or block that there is not.
    """
    if not isinstance(weight, Mapping) or is_timeline(weight):
        return weight
    found: dict[str, float] = {}
    for part, value in weight.items():
        if part == 'text_encoder':
            found[part] = value
        elif part == 'unet' and isinstance(value, Mapping) and not is_timeline(value):
            for name, number in _blocks(value):
                found[f'unet.{name}'] = number
        elif part == 'unet':
            found[part] = value
        else:
            raise InputError(
                f'adapter_weights: there is no part {part!r}.'
                f'{nearest(part, ("unet", "text_encoder"))}'
            )
    kept = {
        name: number
        for name, number in found.items()
        if any(key == name or key.startswith(f'{name}.') for key in lora.pairs)
    }
    return kept or 1.0


def _blocks(weights: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for side, value in weights.items():
        if side not in _SIDES:
            raise InputError(f'adapter_weights: no side {side!r}.{nearest(side, _SIDES)}')
        stem = _SIDES[side]
        if not isinstance(value, Mapping):
            yield stem, value
            continue
        for block, inner in value.items():
            number = str(block).removeprefix('block_')
            if not number.isdigit():
                raise InputError(f"adapter_weights: {block!r}, expected such as 'block_0'.")
            name = f'{stem}.{number}'
            if not isinstance(inner, (list, tuple)):
                yield name, inner
                continue
            for place, each in enumerate(inner):
                yield f'{name}.attentions.{place}', each
                yield f'{name}.motion_modules.{place}', each


def times(scale: Any, factor: float) -> Any:
    """A scale of a LoRA times a number; settings of a timeline stay."""
    if isinstance(scale, Mapping):
        return {name: times(value, factor) for name, value in scale.items()}
    number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    return scale * factor if number else scale


def active_scale(lora: LoRA, usual: float) -> Any:
    """The scale of a LoRA, or the usual one where it is off."""
    on = any(lora.scale.values()) if isinstance(lora.scale, Mapping) else lora.scale
    return lora.scale if on else usual


def without_layers(lora: LoRA, layers: Container[str]) -> Any:
    """The scale of a LoRA that is off in some layers."""
    shared = [key for key in lora.pairs if key in layers]
    if not shared:
        return lora.scale
    if len(shared) == len(lora.pairs):
        return 0.0
    return {key: 0.0 if key in layers else scale_at(lora.scale, key) for key in lora.pairs}

"""Pictures as prompts: what a caller says about them, checked and spread over adapters and frames.

Every argument has an entry for each adapter; with one adapter its entry may stand alone. An entry
is for the whole clip, or ``{'frames': [...]}`` with an entry for each frame:

    ip_adapter_image         picture | [picture, ...]
    ip_adapter_image_embeds  tensor | path of a weight file with one
    ip_adapter_masks         mask | [mask, ...], one for each picture
    ip_adapter_scale         number | by blocks | [number, ...], one for each picture

Shapes: T frames, F = 1 or T, I pictures of an adapter, E features, S tokens of the image encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmvideo.checkpoints.files import read_tensors
from mmvideo.errors import InputError, nearest
from mmvideo.models.adapters.cross_attention import CrossAttention, check_scale, is_silent
from mmvideo.models.conditioning.image import open_rgb

if TYPE_CHECKING:
    from PIL import Image

PER_FRAME = 'frames'


@dataclass(frozen=True)
class ImagePrompts:
    """The arguments of ``infer`` that are about IP-Adapters, as they were given."""

    image: Any = None
    scale: Any = None
    masks: Any = None
    image_embeds: Any = None

    @property
    def given(self) -> bool:
        """Whether there is anything to look at."""
        return any(v is not None for v in (self.image, self.scale, self.masks, self.image_embeds))


@dataclass(frozen=True)
class AdapterPrompt:
    """What one adapter gets for a clip.

    Attributes:
        scale: see ``scale_at``.
        pictures: [F][I] of RGB pictures; None where ``embeds`` are given.
        embeds: [H, F, I, E] or [H, F, I, S, E], H = 2 with the unguided half first, or 1.
        masks: [I, F', height, width] in [0, 1], F' = 1 or T; None is everywhere.
    """

    scale: Any
    pictures: list[list[Image.Image]] | None = None
    embeds: Tensor | None = None
    masks: Tensor | None = None

    @property
    def count(self) -> int:
        """I."""
        if self.pictures is not None:
            return len(self.pictures[0])
        assert self.embeds is not None
        return self.embeds.shape[2]


def spread_prompts(
    given: ImagePrompts,
    names: Sequence[str],
    scales: Sequence[Any],
    frames: int,
    size: tuple[int, int] | None = None,
    layers: Sequence[CrossAttention] = (),
) -> list[AdapterPrompt]:
    """The arguments, one ``AdapterPrompt`` for each adapter.

    Args:
        given: what the caller said.
        names: of the adapters, for messages.
        scales: their own, where the caller says none.
        frames: T.
        size: height and width of the clip in pixels, whose shape masks must have; None to check
            that later.
        layers: of the model, which the scales of blocks must name; without any, only their form
            is checked.

    Raises:
        InputError: naming the argument, its value and what was expected. Pictures are decoded.
    """
    if not names:
        _refuse_without_adapter(given)
        return []
    if given.image is not None and given.image_embeds is not None:
        raise InputError('ip_adapter_image and ip_adapter_image_embeds: give one of them.')
    columns = {
        'ip_adapter_image': given.image,
        'ip_adapter_image_embeds': given.image_embeds,
        'ip_adapter_masks': given.masks,
    }
    spread = {key: _entries(value, len(names), key) for key, value in columns.items()}
    wanted = _scales(given.scale, scales)
    for scale in wanted:
        check_scale(scale, layers)
    return [
        _adapter_prompt(
            AdapterPrompt(wanted[i]),
            {key: values[i] for key, values in spread.items()},
            names[i],
            frames,
            size,
        )
        for i in range(len(names))
    ]


def _refuse_without_adapter(given: ImagePrompts) -> None:
    for key, value in vars(given).items():
        if value is not None:
            raise InputError(
                f'ip_adapter_{key} is given, but the model has no IP-Adapter: add one with '
                "adapters=[dict(type='IPAdapter', from_pretrained=...)]."
            )


def _entries(value: Any, count: int, key: str) -> list[Any]:
    """One entry for each adapter; with one adapter a longer list is its entry."""
    if value is None:
        return [None] * count
    listed = isinstance(value, (list, tuple))
    if listed and len(value) == count:
        return list(value)
    if count == 1 and not (listed and not value):
        return [value]
    found = f'{len(value)} entries' if listed else 'one entry'
    raise InputError(
        f'{key} has {found} for {count} IP-Adapters: expected a list of {count}, one for each.'
    )


def _scales(value: Any, own: Sequence[Any]) -> list[Any]:
    """A number or a dict is for every adapter, a list has one for each."""
    if value is None:
        return list(own)
    if not isinstance(value, (list, tuple)):
        return [value] * len(own)
    return _entries(value, len(own), 'ip_adapter_scale')


def _adapter_prompt(
    start: AdapterPrompt,
    entry: Mapping[str, Any],
    name: str,
    frames: int,
    size: tuple[int, int] | None,
) -> AdapterPrompt:
    image, embeds, masks = entry.values()
    if image is None and embeds is None:
        if is_silent(start.scale):
            return start
        raise InputError(
            f'ip_adapter_image is missing: the IP-Adapter {name!r} needs a picture, or the scale 0.'
        )
    pictures = None if image is None else _pictures(image, frames)
    tensor = None if embeds is None else _embeds(embeds, frames)
    prompt = AdapterPrompt(start.scale, pictures, tensor)
    return AdapterPrompt(
        _checked_scale(start.scale, prompt.count),
        pictures,
        tensor,
        None if masks is None else _masks(masks, prompt.count, frames, size),
    )


def _checked_scale(scale: Any, count: int) -> Any:
    """A list has one scale for each picture, also where it stands for a block's transformer."""
    if isinstance(scale, Mapping):
        for value in scale.values():
            for block in value.values() if isinstance(value, Mapping) else [value]:
                for leaf in block if isinstance(block, (list, tuple)) else []:
                    if isinstance(leaf, (list, tuple)):
                        _checked_scale(leaf, count)
    elif isinstance(scale, (list, tuple)) and len(scale) != count:
        raise InputError(
            f'ip_adapter_scale={list(scale)} has {len(scale)} scales for {count} pictures: '
            'expected a number, or one for each.'
        )
    return scale


def _by_frame(entry: Any, frames: int, key: str) -> list[Any]:
    """The entries of an adapter: one for the clip, or T."""
    if not isinstance(entry, Mapping):
        return [entry]
    if set(entry) != {PER_FRAME} or not isinstance(entry[PER_FRAME], (list, tuple)):
        odd = next((name for name in entry if name != PER_FRAME), PER_FRAME)
        raise InputError(
            f'{key} is a dict with {odd!r}: expected {{{PER_FRAME!r}: [...]}}, an entry for each '
            f'frame.{nearest(odd, [PER_FRAME]) if odd != PER_FRAME else ""}'
        )
    entries = list(entry[PER_FRAME])
    if len(entries) != frames:
        raise InputError(f'{key} has entries for {len(entries)} frames, the clip has {frames}.')
    return entries


def _pictures(entry: Any, frames: int) -> list[list[Image.Image]]:
    key = 'ip_adapter_image'
    rows = [_as_list(row) for row in _by_frame(entry, frames, key)]
    counts = {len(row) for row in rows}
    if 0 in counts:
        raise InputError(f'{key} is an empty list: expected a picture.')
    if len(counts) > 1:
        raise InputError(
            f'{key} has from {min(counts)} to {max(counts)} pictures a frame: expected as many in '
            'every frame.'
        )
    opened: dict[Any, Image.Image] = {}  # a picture that many frames share is decoded once
    for picture in (picture for row in rows for picture in row):
        if _identity(picture) not in opened:
            name = str(picture) if isinstance(picture, (str, Path)) else key
            opened[_identity(picture)] = open_rgb(picture, name)
    return [[opened[_identity(picture)] for picture in row] for row in rows]


def _identity(picture: Any) -> Any:
    return str(picture) if isinstance(picture, (str, Path)) else id(picture)


def _embeds(entry: Any, frames: int) -> Tensor:
    key = 'ip_adapter_image_embeds'
    parts = [_as_tensor(part, key) for part in _by_frame(entry, frames, key)]
    for part in parts:
        if part.dim() not in (3, 4) or part.shape[0] not in (1, 2) or 0 in part.shape:
            raise InputError(
                f'{key} has the shape {list(part.shape)}: expected [2 or 1, I, E] or [2 or 1, I, '
                'S, E], I pictures, with the unguided half first if there are two.'
            )
        if part.shape != parts[0].shape:
            raise InputError(
                f'{key} has frames of {list(parts[0].shape)} and {list(part.shape)}: expected '
                'the same shape in every frame.'
            )
    return torch.stack(parts, dim=1)


def _as_tensor(value: Any, key: str) -> Tensor:
    if isinstance(value, (str, Path)):
        tensors = read_tensors(value)
        if len(tensors) != 1:
            raise InputError(f'{key}: {value} holds {len(tensors)} tensors: expected one.')
        return next(iter(tensors.values()))
    if isinstance(value, Tensor):
        return value
    raise InputError(f'{key} holds a {type(value).__name__}: expected a tensor, or a file of one.')


def _masks(entry: Any, count: int, frames: int, size: tuple[int, int] | None) -> Tensor:
    key = 'ip_adapter_masks'
    if isinstance(entry, Tensor) and entry.dim() == 4:  # diffusers' form, [1, I, height, width]
        entry = list(entry[0]) if len(entry) == 1 else [entry]
    entries = _as_list(entry)
    if len(entries) != count:
        raise InputError(f'{key} has {len(entries)} masks for {count} pictures: expected {count}.')
    masks = [_mask(mask, frames) for mask in entries]
    shapes = {tuple(mask.shape[1:]) for mask in masks}
    if len(shapes) > 1:
        raise InputError(f'{key} has masks of the sizes {sorted(shapes)}: expected one size.')
    height, width = shapes.pop()
    if size is not None and height * size[1] != width * size[0]:
        raise InputError(
            f'{key}: a mask is {width}x{height} px, which is another shape than the clip '
            f'({size[1]}x{size[0]}); expected {size[1]}x{size[0]} px.'
        )
    longest = max(len(mask) for mask in masks)
    return torch.stack([mask.expand(longest, -1, -1) for mask in masks])


def _mask(mask: Any, frames: int) -> Tensor:
    """[F', height, width] in [0, 1]."""
    key = 'ip_adapter_masks'
    parts = [_mask_values(part) for part in _by_frame(mask, frames, key)]
    if len({part.shape for part in parts}) > 1:
        raise InputError(f'{key} has frames of different sizes: expected one size.')
    values = torch.cat(parts)
    if len(values) not in (1, frames):
        raise InputError(
            f'{key} has a mask of the shape {list(values.shape)}: expected [height, width], or '
            f'[{frames}, height, width], one for each frame.'
        )
    if not (values.min() >= 0 and values.max() <= 1):  # also where either is NaN
        raise InputError(
            f'{key} has values from {values.min():g} to {values.max():g}: expected 0 to 1.'
        )
    return values


def _mask_values(mask: Any) -> Tensor:
    """[F', height, width]; brightness where it is a picture."""
    if isinstance(mask, (np.ndarray, Tensor)):
        values = torch.as_tensor(mask).detach().cpu()
        if values.dim() not in (2, 3) or 0 in values.shape:
            raise InputError(
                f'ip_adapter_masks has a mask of the shape {list(values.shape)}: expected '
                '[height, width].'
            )
        values = values.float() / (255 if values.dtype == torch.uint8 else 1)
        return values if values.dim() == 3 else values[None]
    grey = open_rgb(mask, str(mask) if isinstance(mask, (str, Path)) else 'ip_adapter_masks')
    return torch.from_numpy(np.array(grey.convert('L'))).float().div(255)[None]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]

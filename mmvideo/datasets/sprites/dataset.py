"""The sprite world as a dataset: item i depends on (seed, split, i) and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mmvideo.datasets.sprites.grammar import caption
from mmvideo.datasets.sprites.palette import STYLES
from mmvideo.datasets.sprites.world import (
    ATTRIBUTES,
    CLIP_FPS,
    CLIP_INTERVALS,
    FRAME,
    MAX_SIZE,
    MIN_SIZE,
    PACES,
    PATHS,
    Scene,
    motion_bucket,
    path,
    render_at,
    sample_scene,
)
from mmvideo.errors import InputError, nearest
from mmvideo.registry import DATASETS

SPLITS = ('train', 'held_out')
HELD_OUT_ONE_IN = 10


def is_held_out(scene: Scene) -> bool:
    """Whether training never shows this (kind, colour, place) or this (kind, colour, heading).

    One in ten of either, and of a (kind, colour) never more than one place and one heading, so
    that everything is seen in training in most combinations. No seed changes it.
    """
    number = {field: valid.index(getattr(scene, field)) for field, valid in ATTRIBUTES.items()}
    kind, colour = number['kind'], number['colour']
    at_place = (3 * kind + 7 * colour + number['place']) % HELD_OUT_ONE_IN == 0
    towards = (7 * kind + 3 * colour + number['heading']) % HELD_OUT_ONE_IN == 5
    return at_place or towards


@DATASETS.register_module()
class SpriteWorld(Dataset):
    """Clips of the sprite world with captions.

    Args:
        split: 'train', or 'held_out' for the combinations that 'train' never shows.
        length: the number of items.
        num_frames: T; with 1, a random moment of a 16-frame clip.
        size: frame size in px, 32 to 512.
        style: 'flat', 'sketch' or 'neon', or several to draw from.
        paths: 'steady' ties the motion to the pace that the picture shows; 'centred' likewise, with
            the middle of the path in the middle of the frame. 'free' goes straight, as far as is
            drawn, whatever the picture shows; 'loose' likewise, also slower at both ends, or out
            and back.
        seed: of everything drawn.
        captions: whether to describe the clip; without, every caption is empty.
        single_frame: draw one random moment of a ``num_frames`` clip.
        spread: factor on every position's distance from the middle of the frame. Below 1 the
            place of a sprite says less and its looks more, which a training learns from first.
        paces: which of 'still', 'slow', 'steady' and 'fast' are shown; without 'still' every
            caption asks for motion. One that is named twice is shown twice as often.
        fps: frames a second, drawn for each clip. The more there are, the less moves in a clip.
            Items then have ``fps`` and ``motion_bucket_id``, the motion in a given time. None is
            8, and items do not say it.

    Raises:
        InputError: (a ``ValueError``) for an argument that cannot be right.
    """

    def __init__(
        self,
        split: str = 'train',
        length: int = 100_000,
        num_frames: int = 16,
        size: int = 64,
        style: str | Sequence[str] = 'flat',
        paths: str = 'steady',
        seed: int = 0,
        captions: bool = True,
        single_frame: bool = False,
        spread: float = 1.0,
        paces: str | Sequence[str] = tuple(PACES),
        fps: Sequence[float] | None = None,
    ) -> None:
        self.styles = (style,) if isinstance(style, str) else tuple(style)
        self.paces = (paces,) if isinstance(paces, str) else tuple(paces)
        _check_choice('split', split, SPLITS)
        _check_choice('paths', paths, PATHS)
        for name in self.styles:
            _check_choice('style', name, STYLES)
        for name in self.paces:
            _check_choice('pace', name, tuple(PACES))
        if not self.paces:
            raise InputError(f'paces names no pace; some of {", ".join(PACES)}')
        _check_numbers(length, num_frames, size, seed, self.styles)
        if not 0 <= spread <= 1:
            raise InputError(f'spread is 0 to 1, got {spread}')
        if fps is not None and (len(fps) < 1 or not all(1 <= rate <= 240 for rate in fps)):
            raise InputError(f'fps is some numbers from 1 to 240, got {fps}')
        self.fps = None if fps is None else tuple(float(rate) for rate in fps)
        self.spread = spread
        self.split, self.length, self.size, self.paths = split, length, size, paths
        self.seed, self.captions = seed, captions
        self.single_frame = single_frame or num_frames == 1
        self.num_frames = num_frames if num_frames > 1 else CLIP_INTERVALS + 1

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> tuple[Scene, np.random.Generator]:
        """The scene of an item, and the generator that drew it."""
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        style = self.styles[rng.integers(len(self.styles))]
        fps = self.rate(index)
        while True:
            scene = sample_scene(rng, style, self.num_frames, self.paths, fps)
            # Drawn again, not drawn otherwise: other paces leave the items that fit as they are.
            if is_held_out(scene) == (self.split == 'held_out') and self._shown(scene, rng):
                return scene, rng

    def _shown(self, scene: Scene, rng: np.random.Generator) -> bool:
        count, most = self.paces.count(scene.pace), max(map(self.paces.count, self.paces))
        return count == most or rng.random() * most < count

    def rate(self, index: int) -> float:
        """Frames a second of an item."""
        if self.fps is None:
            return CLIP_FPS
        # A generator of its own, so that a data set has the same scenes at any rate.
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index, 1])
        return self.fps[rng.integers(len(self.fps))]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``video`` uint8 [T, C, H, W], ``caption``, ``index``, and the ``scene``'s attributes.

        With ``fps`` also ``fps`` and ``motion_bucket_id``, as floats.
        """
        index = int(index)
        if not -self.length <= index < self.length:
            raise IndexError(f'item {index} of a dataset of {self.length}')
        scene, rng = self.scene(index % self.length)
        centres = FRAME / 2 + self.spread * (path(scene, self.num_frames) - FRAME / 2)
        text = caption(scene, rng) if self.captions else ''
        if self.single_frame:
            centres = centres[[rng.integers(len(centres))]]
        video = torch.from_numpy(render_at(scene, centres, self.size))
        attributes = asdict(scene)
        attributes['start_x'], attributes['start_y'] = attributes.pop('start')
        return {
            'video': video.permute(0, 3, 1, 2).contiguous(),
            'caption': text,
            'index': index % self.length,
            'scene': attributes,
            **self._told(scene, index % self.length),
        }

    def _told(self, scene: Scene, index: int) -> dict[str, float]:
        if self.fps is None:
            return {}
        fps = self.rate(index)
        bucket = motion_bucket(self.spread * scene.travel, self.num_frames, fps)
        return {'fps': fps, 'motion_bucket_id': float(bucket)}


def _check_choice(name: str, value: object, valid: Sequence[str]) -> None:
    if value not in valid:
        options = ', '.join(valid)
        raise InputError(f'unknown {name} {value!r}; one of {options}.{nearest(value, valid)}')


def _check_numbers(
    length: int, num_frames: int, size: int, seed: int, styles: tuple[str, ...]
) -> None:
    if length < 1:
        raise InputError(f'an empty dataset: length is {length}, at least 1 is needed')
    if num_frames < 1:
        raise InputError(f'num_frames is at least 1, got {num_frames}')
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InputError(f'size is {MIN_SIZE} to {MAX_SIZE} px, got {size}')
    if seed < 0:
        raise InputError(f'seed is 0 or more, got {seed}')
    if not styles:
        raise InputError(f'style names no style; some of {", ".join(STYLES)}')

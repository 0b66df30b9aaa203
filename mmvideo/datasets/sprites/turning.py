"""Clips whose sprite turns, with captions that change where it does."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mmvideo.datasets.sprites.dataset import SPLITS, SpriteWorld, is_held_out
from mmvideo.datasets.sprites.grammar import caption
from mmvideo.datasets.sprites.world import (
    CLIP_INTERVALS,
    FRAME,
    HEADINGS,
    PACES,
    Scene,
    reach,
    render_at,
)
from mmvideo.errors import InputError
from mmvideo.registry import DATASETS

LEAST = 4  # frames before and after a turn: fewer show no motion
_STREAM = 2  # of the generators that draw turns, apart from those that draw scenes


@DATASETS.register_module()
class TurningSprites(Dataset):
    """The clips of a ``SpriteWorld``, some of which turn.

    Up to a frame the sprite faces and goes one way, from there on another, at the same pace. The
    caption then is a timeline, as ``infer`` takes it::

        0: a red fish moving left on the sea
        7: a red fish going up on the sea
        interpolation: step

    An editor trains on such captions with ``changing_captions=True``.

    Args:
        world: config of the ``SpriteWorld``, of at least 8 frames.
        share: of the clips that turn, 0 to 1; the others are the world's, as they are.

    Raises:
        InputError: (a ``ValueError``) for an argument that cannot be right.
    """

    part_registries = {'world': 'DATASETS'}

    def __init__(self, world: dict, share: float = 0.5) -> None:
        if not 0 <= share <= 1:
            raise InputError(f'share is 0 to 1, got {share}')
        self.world = DATASETS.build(world)
        if not isinstance(self.world, SpriteWorld):
            raise InputError(f'world is a SpriteWorld, got {type(self.world).__name__}')
        if self.world.single_frame or self.world.num_frames < 2 * LEAST:
            raise InputError(f'a clip that turns has at least {2 * LEAST} frames')
        if self.world.fps is not None or self.world.spread != 1:
            raise InputError('a clip that turns takes neither fps nor spread from its world')
        self.share = share

    def __len__(self) -> int:
        return len(self.world)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As of a ``SpriteWorld``; a turning clip's ``scene`` is the one that it begins with."""
        index = range(len(self))[int(index)]
        number = SPLITS.index(self.world.split)
        rng = np.random.default_rng([self.world.seed, number, index, _STREAM])
        if rng.random() >= self.share:
            return self.world[index]
        scene, turned, at = self._turn(self.world.scene(index)[0], rng)
        centres = turning_path(scene, turned, at, self.world.num_frames, rng.random(2))
        size = self.world.size
        parts = (render_at(scene, centres[:at], size), render_at(turned, centres[at:], size))
        video = torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2).contiguous()
        lines = (f'0: {caption(scene, rng)}', f'{at}: {caption(turned, rng)}')
        attributes = asdict(scene)
        attributes['start_x'], attributes['start_y'] = map(float, centres[0])
        del attributes['start']
        text = '\n'.join((*lines, 'interpolation: step')) if self.world.captions else ''
        return {'video': video, 'caption': text, 'index': index, 'scene': attributes}

    def _turn(self, scene: Scene, rng: np.random.Generator) -> tuple[Scene, Scene, int]:
        """The scene before and after its turn, and the first frame after it."""
        frames = self.world.num_frames
        travel = PACES[scene.pace] * rng.uniform(0.9, 1.1) * (frames - 1) / CLIP_INTERVALS
        scene = replace(scene, travel=travel, course='straight')
        held_out = self.world.split == 'held_out'
        others = [replace(scene, heading=name) for name in HEADINGS if name != scene.heading]
        # A scene that is held out for its heading alone turns to one that training shows.
        others = [other for other in others if is_held_out(other) == held_out] or others
        turned = others[rng.integers(len(others))]
        return scene, turned, int(rng.integers(LEAST, frames - LEAST + 1))


def turning_path(
    scene: Scene, turned: Scene, at: int, frames: int, share: np.ndarray
) -> np.ndarray:
    """The centres of a sprite that turns in frame ``at``, inside the frame: float64 [T, 2].

    Args:
        scene: how it begins; ``travel`` is the length of both ways together, cut to what fits.
        turned: how it goes on.
        at: the first frame after the turn; the step into it goes the new way.
        frames: T.
        share: where in the room that there is, 0 to 1 along x and along y.
    """
    steps = np.repeat(
        np.array([HEADINGS[scene.heading], HEADINGS[turned.heading]], np.float64),
        (at - 1, frames - at),
        axis=0,
    )
    way = np.concatenate([np.zeros((1, 2)), steps.cumsum(axis=0)]) * scene.travel / (frames - 1)
    reached = [reach(part.kind, part.heading, part.style) for part in (scene, turned)]
    left, right, up, down = np.max(reached, axis=0)
    low, high = np.array([left, up]), np.array([FRAME - right, FRAME - down])
    span, room = np.ptp(way, axis=0), np.maximum(high - low, 0)
    fits = float(min(1.0, *(room[span > 0] / span[span > 0]))) if span.any() else 1.0
    start = low - way.min(axis=0) * fits + share * (room - span * fits)
    return start + way * fits

"""How clips change over time: seams of windows and loops, turns, and motion where it was asked.

Changes are measured on pixels and need no tracker; what a sprite does is read from its ``Track``.
T frames, S frame size in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mmvideo.datasets.sprites.world import FRAME
from mmvideo.errors import InputError
from mmvideo.evaluation.sprite_tracking import Track, track
from mmvideo.evaluation.sprites import follows

TINY = 1e-6  # a change that counts as none


def changes(clip: np.ndarray, ring: bool = False) -> np.ndarray:
    """Mean absolute difference of each frame to the next one, in 1/255: [T - 1].

    Args:
        clip: uint8 [T, S, S, 3].
        ring: count the step from the last frame to the first too, as the last entry: [T].
    """
    frames = clip.astype(np.float32)
    following = np.roll(frames, -1, axis=0) if ring else frames[1:]
    return np.abs(following - frames[: len(following)]).mean(axis=(1, 2, 3))


def border_steps(windows: Sequence[Collection[int]], num_frames: int, reach: int = 1) -> np.ndarray:
    """Which of the T - 1 steps between frames lie where a window begins or ends: bool.

    Args:
        windows: frames of each window, such as ``WindowPlan.frames``.
        num_frames: T.
        reach: further steps that count on both sides, as windows are blended over some frames.
    """
    seen = [{i for i, window in enumerate(windows) if f in window} for f in range(num_frames)]
    ends = np.array([a != b for a, b in itertools.pairwise(seen)], dtype=bool)
    near = ends.copy()
    for shift in range(1, reach + 1):
        near[shift:] |= ends[:-shift]
        near[:-shift] |= ends[shift:]
    return near


def border_ratio(clip: np.ndarray, borders: np.ndarray) -> float:
    """The largest change at the borders of windows over the largest one elsewhere.

    Raises:
        InputError: every step is a border, or none.
    """
    if borders.all() or not borders.any():
        raise InputError(
            f'of {len(borders)} steps between frames {int(borders.sum())} are borders of windows: '
            'there is nothing to compare them to.'
        )
    steps = changes(clip)
    return float(steps[borders].max() / max(steps[~borders].max(), TINY))


def roughness(clip: np.ndarray) -> float:
    """The largest change over the median one: 1 is even, a jump anywhere raises it."""
    steps = changes(clip)
    return float(steps.max() / max(np.median(steps), TINY))


def loop_seam(clip: np.ndarray) -> float:
    """The change from the last frame to the first over the largest one inside the clip."""
    steps = changes(clip, ring=True)
    return float(steps[-1] / max(steps[:-1].max(), TINY))


def turns(clip: np.ndarray, before: Mapping, after: Mapping, at: int) -> bool:
    """Whether a sprite moves as one caption says up to a frame, and as another one from there on.

    The two parts are tracked by themselves: the sprite faces another way in each.

    Args:
        clip: uint8 [T, S, S, 3].
        before: what the first caption says, see ``parse_caption``.
        after: what the second one says.
        at: the frame in which the caption changes.
    """
    size = clip.shape[1]
    parts = ((clip[:at], before), (clip[at:], after))
    return all(follows(track(part), said, size) is True for part, said in parts)


def keeps_direction(found: Track, said: Mapping, size: int, window: int = 16) -> bool | None:
    """Whether a sprite of a long clip moves as its caption says.

    The frame is too small for it to keep its pace: it must get as far as in one window, and stay
    on its way, see ``follows``.

    Args:
        found: the clip's track.
        said: what the caption says, see ``parse_caption``.
        size: S.
        window: frames of a clip as the model was trained on.
    """
    frames = len(found.positions)
    chosen = np.linspace(0, frames - 1, min(window, frames)).round().astype(int)
    return follows(_part(found, chosen), said, size)


def motion_by_affinity(found: Track, affinity: Sequence[float], size: int) -> float:
    """How much further a sprite is from its first place where the affinity is low.

    Returns:
        The mean distance in frames whose affinity is below the middle of its range, less that in
        the others (without the first frame), in 1/64 of the frame; NaN for a lost sprite.
    """
    curve = np.asarray(affinity, dtype=float)
    low = curve < (curve.min() + curve.max()) / 2
    high = ~low
    high[0] = False
    if not low.any() or not high.any():
        raise InputError('the affinity never changes: there is nothing to compare.')
    away = np.linalg.norm(found.positions - found.positions[0], axis=1)
    if found.lost or not (np.isfinite(away[low]).any() and np.isfinite(away[high]).any()):
        return float('nan')
    return float(np.nanmean(away[low]) - np.nanmean(away[high])) * FRAME / size


def _part(found: Track, part: slice | np.ndarray) -> Track:
    """Some frames of a track."""
    positions = found.positions[part]
    if np.isnan(positions[:, 0]).all():
        return replace(found, positions=positions, explained=found.explained[part], kind=None)
    return replace(found, positions=positions, explained=found.explained[part])

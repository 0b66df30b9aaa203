"""Curves through keyframes: what stands between two keys.

T frames, K keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# How far from one key to the next, by the part of the way in time, 0 to 1.
EASINGS: dict[str, Callable[[float], float]] = {
    'linear': lambda t: t,
    'step': lambda t: 0.0,
    'ease-in': lambda t: t * t,
    'ease-out': lambda t: t * (2 - t),
    'ease-in-out': lambda t: t * t * (3 - 2 * t),
}


def mixture(
    keys: Sequence[int], num_frames: int, easing: str = 'linear', loop: bool = False
) -> Tensor:
    """What each frame takes of each key, float32 [T, K]; rows sum to one.

    Before the first key a frame has the first key's value, after the last one the last's.

    Args:
        keys: frames of the keys, rising.
        num_frames: T.
        easing: a name of ``EASINGS``.
        loop: after the last key go on to the first, which is reached in frame T, where the clip
            begins again; likewise before the first key.
    """
    ease = EASINGS[easing]
    rows = torch.zeros(num_frames, len(keys))
    for frame in range(num_frames):
        later = next((k for k, key in enumerate(keys) if key > frame), len(keys))
        left, right = later - 1, later
        if loop:
            left, right = left % len(keys), right % len(keys)
            gap = (keys[right] - keys[left]) % num_frames or num_frames
            share = ease((frame - keys[left]) % num_frames / gap)
        else:
            left, right = max(left, 0), min(right, len(keys) - 1)
            gap = keys[right] - keys[left]
            share = ease((frame - keys[left]) / gap) if gap > 0 else 0.0
        rows[frame, left] += 1 - share
        rows[frame, right] += share
    return rows

"""How far the frames of a clip are from one another, as PIA's training measures it.

The score of two frames is the mean absolute difference of their hue, saturation, value and edges
(Zhang et al. 2023, section 3.2; open-mmlab/PIA animatediff/data/dataset.py).

T frames, C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from mmvideo.errors import InputError
from mmvideo.registry import TRANSFORMS


class Clips(Protocol):
    """Anything like a map-style dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class ScoreRange(NamedTuple):
    """Smallest and largest score by distance 0 to T - 1, of clips of T frames [H, W]."""

    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    num_frames: int
    size: tuple[int, int]


def affinity_scores(video: np.ndarray) -> np.ndarray:
    """The score of every frame against every other, float32 [T, T], symmetric, zero diagonal.

    Hue counts in degrees (and is not circular), saturation 0..1, value and edges 0..255; edges
    that appear count like edges that vanish. (The official code subtracts edge maps in 8 bit, where
    a vanishing edge wraps around to 1 instead of 255.)

    Args:
        video: uint8 [T, H, W, 3], RGB.

    Raises:
        InputError: another type or shape.
    """
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8:
        raise InputError(
            f'affinity needs uint8 frames, got {getattr(video, "dtype", type(video))}.'
        )
    if video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape:
        raise InputError(f'affinity needs frames [T, H, W, 3], got {list(video.shape)}.')
    frames = np.stack([_features(frame) for frame in video])
    scores = np.zeros((len(video), len(video)), np.float64)
    for frame in range(len(video) - 1):
        apart = np.abs(frames[frame + 1 :] - frames[frame])
        scores[frame, frame + 1 :] = apart.reshape(len(apart), -1).mean(axis=1, dtype=np.float64)
    return (scores + scores.T).astype(np.float32)


def edges(value: np.ndarray) -> np.ndarray:
    """Edges of a picture's brightness, 0 or 255, thickened so that small motion overlaps.

    Canny with thresholds 2/3 and 4/3 of the median.

    Args:
        value: uint8 [H, W].
    """
    import cv2

    height, width = value.shape
    thickness = 4 + round(math.sqrt(width * height) / 192)
    thickness += thickness % 2 == 0
    sigma, median = 1 / 3, float(np.median(value))
    low, high = int(max(0, (1 - sigma) * median)), int(min(255, (1 + sigma) * median))
    return cv2.dilate(cv2.Canny(value, low, high), np.ones((thickness, thickness), np.uint8))


def _features(frame: np.ndarray) -> np.ndarray:
    """Hue, saturation, value and edges of one frame, float32 [H, W, 4]."""
    import cv2

    hsv = cv2.cvtColor(frame.astype(np.float32), cv2.COLOR_RGB2HSV)
    outline = edges(hsv[:, :, 2].astype(np.uint8))
    return np.dstack([hsv, outline.astype(np.float32)])


@TRANSFORMS.register_module()
class AddAffinity:
    """Adds ``affinity_scores``, float32 [T, T], to a sample with ``video``, uint8 [T, 3, H, W].

    It belongs after every change of the frames: scores depend on size, crop and stride, and the
    statistics they are scaled by must have been measured the same way.
    """

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The sample with its scores."""
        video = sample.get('video')
        if not isinstance(video, torch.Tensor) or video.ndim != 4:
            raise InputError("AddAffinity needs 'video', a uint8 tensor [T, 3, H, W].")
        scores = affinity_scores(np.ascontiguousarray(video.permute(0, 2, 3, 1).numpy()))
        return {**sample, 'affinity_scores': torch.from_numpy(scores)}

    def __repr__(self) -> str:
        return 'AddAffinity()'


def measure_scores(
    dataset: Clips,
    clips: int,
    on_clip: Callable[[int], None] = lambda done: None,
    percentile: float = 100.0,
) -> ScoreRange:
    """The smallest and largest score by distance, over clips spread evenly across a data set.

    Args:
        dataset: items with ``video`` uint8 [T, 3, H, W], all with one T.
        clips: how many items are looked at.
        on_clip: called with the number of clips done.
        percentile: of the pairs of frames at one distance, how many have at most the largest
            score that is given; 100 is the very largest. A cut, or a sprite unlike the others,
            can lie so far above the rest that scaled by it nothing else seems to move.

    Raises:
        InputError: too few clips, clips of several lengths or sizes, or a percentile that is none.
    """
    if not 1 <= clips <= len(dataset):
        raise InputError(f'clips={clips}: the data set has {len(dataset)}, expected 1 to that.')
    if not 0 < percentile <= 100:
        raise InputError(f'percentile={percentile}: expected a number above 0, 100 at most.')
    first: tuple[int, ...] = ()
    scores: list[np.ndarray] = []
    for done in range(clips):
        index = done * len(dataset) // clips
        sample = AddAffinity()(dataset[index])
        shape = tuple(sample['video'].shape)
        first = first or shape
        if shape != first:
            raise InputError(f'clip {index} is {list(shape)}, the first one {list(first)}.')
        scores.append(sample['affinity_scores'].numpy())
        on_clip(done + 1)
    every = np.stack(scores)  # N T T
    by_distance = [np.diagonal(every, apart, axis1=1, axis2=2) for apart in range(first[0])]
    low = tuple(float(found.min()) for found in by_distance)
    high = tuple(float(np.percentile(found, percentile)) for found in by_distance)
    return ScoreRange(low, high, first[0], (first[2], first[3]))

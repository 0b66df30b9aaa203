"""PIA's amount of motion: from the argument ``motion_scale`` to an affinity for each frame.

N samples, T frames, K pictures of a clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmvideo.editors.checks import check_choice, check_whole
from mmvideo.editors.request import spread
from mmvideo.editors.timeline import Timeline, number_timeline
from mmvideo.errors import InputError
from mmvideo.models.conditioning.affinity import (
    FIT,
    affinity_at_inference,
    affinity_of_several,
    motion_table,
)

# How the affinities to several pictures become one: see ``clip_affinity``.
RULES = ('nearest', 'official')


def condition_frames(value: Any, num_frames: int) -> tuple[int, ...]:
    """Which frames the pictures of a clip are, in the order of the pictures.

    Args:
        value: a frame, or several.
        num_frames: T.

    Raises:
        InputError: no frame of the clip, or one twice.
    """
    frames = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not frames:
        raise InputError('condition_frame is an empty list: expected at least one frame.')
    for frame in frames:
        check_whole('num_frames', num_frames, 1)
        whole = isinstance(frame, int) and not isinstance(frame, bool)
        if not whole or not 0 <= frame < num_frames:
            raise InputError(
                f'condition_frame={frame!r}: a clip of {num_frames} frames has 0 to '
                f'{num_frames - 1}.'
            )
    if len(set(frames)) < len(frames):
        raise InputError(f'condition_frame={list(frames)}: a frame appears twice.')
    return frames


def spread_motion(motion_scale: Any, count: int) -> list[Any]:
    """``motion_scale`` of each sample.

    A list of numbers is one table for all. A list that holds a name, a table or keyframes has an
    entry for each sample.
    """
    if isinstance(motion_scale, (list, tuple)) and any(map(_is_own, motion_scale)):
        return spread(motion_scale, count, 'motion_scale')
    return [motion_scale] * count


def motion_entries(motion_scale: Any) -> list[Any]:
    """The different values in ``motion_scale``, for a check that knows no number of samples."""
    own = isinstance(motion_scale, (list, tuple)) and any(map(_is_own, motion_scale))
    return list(motion_scale) if own else [motion_scale]


def clip_affinity(
    motion_scale: Any, num_frames: int, frames: Sequence[int], rule: str = 'nearest'
) -> Tensor:
    """The affinity of each frame of a clip to its pictures, float32 [T].

    Args:
        motion_scale: see ``affinity_at_inference``, or keyframes: affinities by frame, such as
            ``{0: 1.0, 8: 0.6, 15: 1.0, 'interpolation': 'ease-in-out'}``, which stand as they are.
        num_frames: T.
        frames: which frames the pictures are.
        rule: for several pictures. ``'nearest'``, ours: a frame resembles the picture that it
            resembles most, so the largest of its affinities counts, and every picture's own frame
            has the first value of the table. ``'official'``: see ``affinity_of_several``; of
            ``motion_scale`` only the smallest affinity counts.

    Raises:
        InputError: naming the value.
    """
    check_choice('condition_rule', rule, RULES)
    if isinstance(motion_scale, (Mapping, Timeline)):
        affinities = number_timeline(motion_scale, 'motion_scale', num_frames, 0, 1, steps=False)
        return affinities.curve(num_frames)
    if len(frames) > 1 and rule == 'official':
        named = isinstance(motion_scale, str)
        table = motion_table(motion_scale.removeprefix(FIT) if named else motion_scale)
        return affinity_of_several(num_frames, frames, min(table))
    each = [affinity_at_inference(motion_scale, num_frames, frame) for frame in frames]
    return torch.stack(each).amax(0)


def clip_images(image: Any, per_clip: int) -> list[list[Any]]:
    """The pictures of each sample; a flat list with several of a clip is one clip's."""
    entries = list(image) if isinstance(image, (list, tuple)) else [image]
    if not entries:
        raise InputError('image is an empty list: expected at least one picture.')
    if per_clip > 1 and not any(isinstance(entry, (list, tuple)) for entry in entries):
        entries = [entries]
    clips = [list(entry) if isinstance(entry, (list, tuple)) else [entry] for entry in entries]
    for pictures in clips:
        if len(pictures) != per_clip:
            raise InputError(
                f'{len(pictures)} images for {per_clip} condition frames: give one for each.'
            )
    return clips


def _is_own(value: Any) -> bool:
    return isinstance(value, (str, list, tuple, Mapping, Timeline))

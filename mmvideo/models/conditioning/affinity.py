"""PIA's inter-frame affinity: how much each frame resembles the condition frame.

One number a frame, 1 where it should equal the picture, less where it may differ. At inference
it comes from a table (``motion_scale``); while training it is measured on the clip and scaled by
statistics of the data set. (Zhang et al. 2023, section 3.2; open-mmlab/PIA
animatediff/utils/util.py; huggingface/diffusers pipelines/pia.)

N batch, T frames, K offsets of a table.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmvideo.errors import InputError, nearest

# Affinity by distance from the condition frame; the last value goes on for longer clips. The order
# is that of diffusers' integers: the official code has 'style-large' before 'style-small'.
MOTION_TABLES: dict[str, tuple[float, ...]] = {
    'small': (1.0, 0.9, 0.85, 0.85, 0.85, 0.8),
    'moderate': (1.0, 0.8, 0.8, 0.8, 0.79, 0.78, 0.75),
    'large': (1.0, 0.8, *[0.7] * 8, 0.6, 0.5, 0.5),
    'loop-small': (1.0, 0.9, 0.85, 0.85, 0.85, *[0.8] * 7, 0.85, 0.85, 0.9, 1.0),
    'loop-moderate': (1.0, 0.8, 0.8, 0.8, 0.79, 0.78, *[0.75] * 5, 0.78, 0.79, 0.8, 0.8, 1.0),
    'loop-large': (1.0, 0.8, *[0.7] * 4, 0.6, 0.5, 0.5, 0.6, *[0.7] * 4, 0.8, 1.0),
    'style-small': (0.5, 0.4, 0.4, 0.4, 0.35, 0.3),
    'style-moderate': (0.5, 0.4, 0.4, 0.4, 0.35, 0.35, 0.3, 0.25, 0.2),
    'style-large': (0.5, 0.2),
}
FIT = 'fit-'  # before a table's name: stretched to the clip
_TABLE_FRAMES = 16  # that the tables were made for
LOWEST = 0.2  # affinity of the least similar frame in training
_ABOVE = 0.95  # a score beyond the statistics counts as this part of the largest
_VERSION = 1


def motion_table(motion_scale: int | str | Sequence[float]) -> tuple[float, ...]:
    """Affinity by distance from the condition frame.

    Args:
        motion_scale: a name of ``MOTION_TABLES``, its position 0 to 8 (0-2 amount of motion, 3-5
            loops made for 16 frames, 6-8 change of style), or the numbers themselves, each in
            [0, 1].

    Raises:
        InputError: naming the nearest valid value.
    """
    names = list(MOTION_TABLES)
    if isinstance(motion_scale, str):
        if motion_scale not in MOTION_TABLES:
            raise InputError(
                f'motion_scale={motion_scale!r}: expected one of {", ".join(names)}, these with '
                f'{FIT!r} before them, or 0 to {len(names) - 1}.'
                f'{nearest(motion_scale, [*names, *(FIT + name for name in names)])}'
            )
        return MOTION_TABLES[motion_scale]
    if isinstance(motion_scale, (Sequence, Tensor)) or hasattr(motion_scale, '__array__'):
        numbers = getattr(motion_scale, 'tolist', lambda: motion_scale)()
        if isinstance(numbers, Sequence):
            return _own_table(numbers)
        motion_scale = numbers
    return MOTION_TABLES[names[_position(motion_scale, len(names))]]


def affinity_at_inference(
    motion_scale: int | str | Sequence[float], num_frames: int, condition_frame: int = 0
) -> Tensor:
    """The affinity of each frame of a clip, float32 [T].

    The table is not stretched: a loop closes only in 16 frames, from condition frame 0. A name
    with ``fit-`` before it, such as ``'fit-loop-small'``, is: see ``fitted_affinity``.

    Args:
        motion_scale: see ``motion_table``.
        num_frames: T.
        condition_frame: which frame the picture is, 0 to T - 1.

    Raises:
        InputError: a value that cannot be used.
    """
    fitted = isinstance(motion_scale, str) and motion_scale.removeprefix(FIT) in MOTION_TABLES
    fitted = fitted and str(motion_scale).startswith(FIT)
    table = motion_table(str(motion_scale).removeprefix(FIT) if fitted else motion_scale)
    if num_frames < 1:
        raise InputError(f'num_frames={num_frames}: expected at least 1.')
    if not 0 <= condition_frame < num_frames:
        raise InputError(
            f'condition_frame={condition_frame}: a clip of {num_frames} frames has 0 to '
            f'{num_frames - 1}.'
        )
    if fitted:
        return fitted_affinity(table, num_frames, condition_frame)
    last = len(table) - 1
    offsets = [abs(frame - condition_frame) for frame in range(num_frames)]
    return torch.tensor([table[min(offset, last)] for offset in offsets])


def fitted_affinity(table: Sequence[float], num_frames: int, condition_frame: int = 0) -> Tensor:
    """A table of 16 frames stretched to a clip, float32 [T]: an addition of ours.

    Its shape is that of 16 frames at any number of frames, where it equals the table. A table that
    ends as it begins is a ring: the last frame equals the first, wherever the condition frame is.

    Args:
        table: affinity by distance from the condition frame.
        num_frames: T.
        condition_frame: which frame the picture is.
    """
    whole = [*table, *[table[-1]] * (_TABLE_FRAMES - len(table))]
    curve = torch.nn.functional.interpolate(
        torch.tensor(whole)[None, None], size=num_frames, mode='linear', align_corners=True
    )[0, 0]
    offsets = torch.arange(num_frames) - condition_frame
    ring = len(table) >= _TABLE_FRAMES and table[0] == table[-1]
    return curve[offsets % max(num_frames - 1, 1) if ring else offsets.abs()]


def affinity_of_several(
    num_frames: int, condition_frames: Sequence[int], lowest: float = LOWEST
) -> Tensor:
    """The official affinity of a clip with several condition frames, float32 [T].

    The affinity to each falls linearly with the distance. They are joined one after the other: the
    difference of the next one and the result so far, stretched to [0, 1]. The end result is
    stretched to [lowest, 1]. (open-mmlab/PIA animatediff/utils/util.py,
    prepare_mask_coef_multi_cond.)

    Args:
        num_frames: T.
        condition_frames: at least one, each 0 to T - 1.
        lowest: affinity of the least similar frame.
    """
    frames = torch.arange(num_frames, dtype=torch.float64)
    slope = (1 - lowest) / max(num_frames - 1, 1)
    joined = torch.zeros(num_frames, dtype=torch.float64)
    for index, condition in enumerate(condition_frames):
        joined = (1 - slope * (frames - condition).abs() - joined).abs()
        if index > 0:
            joined = _stretched(joined)
    return (_stretched(joined) * (1 - lowest) + lowest).float()


def nearest_condition(num_frames: int, condition_frames: Sequence[int]) -> Tensor:
    """Which of the condition frames is nearest to each frame, as positions in the list, [T].

    Of two at the same distance it is the earlier frame, as in the official code.
    """
    order = sorted(range(len(condition_frames)), key=lambda i: condition_frames[i])
    nearest_of = [
        min(order, key=lambda i: abs(condition_frames[i] - frame)) for frame in range(num_frames)
    ]
    return torch.tensor(nearest_of)


def _stretched(values: Tensor) -> Tensor:
    """To [0, 1]; all 1 where nothing differs, which the official code divides by zero."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.ones_like(values)


@dataclass(frozen=True)
class AffinityStatistics:
    """The range of scores of a data set, for each distance from the condition frame.

    Scores depend on how clips were cut, so the protocol belongs to the numbers.

    Attributes:
        minimum: smallest score by offset 0 to K - 1; the first is 0.
        maximum: largest score by offset.
        dataset: name of the data set.
        size: height and width of the frames, px.
        num_frames: frames of a clip.
        stride: source frames from one frame of a clip to the next; None where clips are taken at
            a rate of frames a second.
        num_clips: clips measured; 0 where the source does not say.
        percentile: how many of the scores ``maximum`` covers, in percent.
    """

    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    dataset: str = ''
    size: tuple[int, int] = (0, 0)
    num_frames: int = 0
    stride: int | None = 1
    num_clips: int = 0
    percentile: float = 100.0

    def __post_init__(self) -> None:
        if not self.minimum or len(self.minimum) != len(self.maximum):
            raise InputError(
                'affinity statistics need as many minima as maxima, at least one: got '
                f'{len(self.minimum)} and {len(self.maximum)}.'
            )
        for offset, (low, high) in enumerate(zip(self.minimum, self.maximum, strict=True)):
            if not (math.isfinite(high) and 0 <= low <= high):
                raise InputError(
                    f'affinity statistics at offset {offset}: expected 0 <= minimum <= maximum, '
                    f'got {low} and {high}.'
                )

    def table(self) -> Tensor:
        """Minimum and maximum by offset, float32 [K, 2]."""
        return torch.tensor([self.minimum, self.maximum], dtype=torch.float32).T.contiguous()

    def to_json(self) -> str:
        """The text of a statistics file."""
        return json.dumps({'version': _VERSION, **asdict(self)}, indent=1) + '\n'

    @classmethod
    def from_json(cls, path: str | Path) -> AffinityStatistics:
        """Read what ``tools/affinity_stats.py`` wrote.

        Raises:
            InputError: naming the file and the key that is wrong.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f'{path} does not exist: {_MAKE}')
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
        except ValueError as error:
            raise InputError(f'{path} is no JSON ({error}): {_MAKE}') from None
        if not isinstance(content, dict) or content.get('version') != _VERSION:
            raise InputError(f'{path} holds no affinity statistics of version 1: {_MAKE}')
        try:
            return cls.from_dict({k: v for k, v in content.items() if k != 'version'})
        except InputError as error:
            raise InputError(f'{path}: {error}') from None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> AffinityStatistics:
        """The same from a mapping, such as one written in a config.

        Raises:
            InputError: naming the key that is wrong.
        """
        known = cls.__dataclass_fields__
        for key in content:
            if key not in known:
                raise InputError(f'affinity statistics have no {key!r}.{nearest(key, known)}')
        for key in ('minimum', 'maximum'):
            if key not in content:
                raise InputError(f'affinity statistics lack {key!r}.')
        for key, value in content.items():
            _check_kind(key, value)
        lists = {k: tuple(v) for k, v in content.items() if isinstance(v, (list, tuple))}
        return cls(**{**content, **lists})


_MAKE = 'make it with tools/affinity_stats.py.'

# open-mmlab/PIA#42; 256 px, 16 frames, every fourth frame of the video.
WEBVID_STATISTICS = AffinityStatistics(
    minimum=(
        0.0, 0.3535855, 0.91609545, 1.41165152, 1.56943881, 1.73182842, 1.82733002, 1.88060527,
        1.96208071, 2.02723091, 2.10820894, 2.21115041, 2.23412351, 2.29430165, 2.32986362,
        2.37310751,
    ),
    maximum=(
        0.0, 24.23687346, 30.65091947, 34.40093286, 36.99639585, 39.42044163, 40.94703526,
        42.66233244, 43.73070788, 44.25965378, 45.66120213, 46.29561324, 47.08810863, 47.9515062,
        48.69085638, 49.19931439,
    ),
    dataset='WebVid',
    size=(256, 256),
    num_frames=16,
    stride=4,
)  # fmt: skip


def normalise_scores(
    scores: Tensor, condition_frame: int | Tensor, statistics: AffinityStatistics | Tensor
) -> Tensor:
    """Affinities in [0.2, 1] from the scores of a clip's frames against its condition frame.

    A score above the largest of its offset counts as 0.95 of it, one below the smallest as the
    smallest; then ``1 - 0.8 * score / largest``, and 1 for the condition frame itself.

    Args:
        scores: [T], or [N, T] of several clips.
        condition_frame: 0 to T - 1, or [N] of them.
        statistics: of the data set, or its ``table()`` [K, 2] on the device of ``scores``.

    Raises:
        InputError: a frame lies further away than the statistics reach.
    """
    if isinstance(statistics, AffinityStatistics):
        statistics = statistics.table().to(scores.device)
    frames = scores.shape[-1]
    if frames > len(statistics):
        raise InputError(
            f'a clip of {frames} frames needs affinity statistics of as many offsets, these have '
            f'{len(statistics)}: measure your data set with tools/affinity_stats.py.'
        )
    order = torch.arange(frames, device=scores.device)
    condition = torch.as_tensor(condition_frame, device=scores.device).unsqueeze(-1)
    offsets = (order - condition).abs()  # T, or N T
    low, high = statistics[offsets].to(scores.dtype).unbind(-1)
    bounded = torch.where(scores > high, _ABOVE * high, torch.maximum(scores, low))
    tiny = torch.finfo(scores.dtype).tiny  # an offset at which nothing ever moves
    affinity = 1 - (1 - LOWEST) * bounded / high.clamp_min(tiny)
    return affinity.masked_fill(offsets == 0, 1.0)


def _position(value: Any, count: int) -> int:
    try:
        position = operator.index(value)
    except TypeError:
        position = -1
    if isinstance(value, bool) or not 0 <= position < count:
        raise InputError(
            f'motion_scale={value!r}: expected a whole number 0 to {count - 1}, a name '
            f'({", ".join(MOTION_TABLES)}), or a list of affinities in [0, 1].'
        )
    return position


def _own_table(numbers: Sequence[Any]) -> tuple[float, ...]:
    if not numbers:
        raise InputError('motion_scale is an empty list: expected affinities in [0, 1].')
    for place, number in enumerate(numbers):
        real = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not real or not 0 <= number <= 1:
            raise InputError(f'motion_scale[{place}]={number!r}: expected an affinity in [0, 1].')
    return tuple(float(number) for number in numbers)


_KINDS: dict[str, tuple[Any, str]] = {
    'dataset': (str, 'a text'),
    'stride': (int | None, 'a whole number, or null'),
    'percentile': (int | float, 'a number'),
}


def _check_kind(key: str, value: Any) -> None:
    if key in ('minimum', 'maximum', 'size'):
        valid = isinstance(value, (list, tuple)) and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) for v in value
        )
        expected = 'a list of numbers'
    else:
        kind, expected = _KINDS.get(key, (int, 'a whole number'))
        valid = isinstance(value, kind)
    if not valid:
        raise InputError(f'affinity statistics: {key}={value!r}, expected {expected}.')

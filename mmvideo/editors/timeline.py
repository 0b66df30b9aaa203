"""Timelines: an argument that changes over the frames of a clip, or over the steps of a sampling.

The same forms serve every argument that can change:

    'a meadow in spring', 7.5           the same in all frames
    {0: 'spring', 8: 'summer'}          keyframes, mixed in between
    {0: 7.5, 8: 3.0, 'interpolation': 'ease-in-out', 'loop': True}
    [1.0, 1.0, 0.5, 0.0]                numbers: one for each frame
    {'steps': {0.0: 9.0, 0.5: 5.0}}     numbers: keys are shares of the steps that are done
    '''0: spring                        texts: lines of a prompt, as on a command line
    8: summer'''

Shares are those of ``guidance_interval``: the first of 4 steps is at 0, the last at 0.75. Settings
stand beside the keys, so inside ``'steps'``; steps do not loop.

(In a config that inherits a text or number, keyframes take ``'_delete_': True`` beside them.)

In lines, text before the first key is put before every prompt and text after the last key's line
behind every prompt; ``interpolation: step`` may be a line of its own. A text of one line, or
without a numbered line, is a prompt as it stands.

T frames, K keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmvideo.diffusion.curves import EASINGS, mixture
from mmvideo.errors import InputError, nearest

SETTINGS = ('interpolation', 'loop')
STEPS = 'steps'
_KEY = re.compile(r'\s*(\d+)\s*:\s*(.*)')
_SETTING = re.compile(r'\s*(interpolation|loop)\s*:\s*([\w-]+)\s*')
_FLAGS = {'true': True, 'false': False, 'yes': True, 'no': False}


@dataclass(frozen=True)
class Timeline:
    """Values at some frames, or at some shares of the steps, and what is between them.

    Attributes:
        keys: frames or shares, rising.
        values: texts or numbers, one a key.
        interpolation: a name of ``mmvideo.diffusion.curves.EASINGS``.
        loop: after the last key on to the first, so that a clip that repeats has no jump.
        steps: whether the keys are shares of the steps; all frames then have the same value.
    """

    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    interpolation: str = 'linear'
    loop: bool = False
    steps: bool = False

    @property
    def constant(self) -> bool:
        """Whether all frames, in all steps, have the same value."""
        return len(set(self.values)) == 1

    def at_step(self, share: float) -> Timeline:
        """The frames' timeline in the step before which this share of the steps is done."""
        if not self.steps:
            return self
        # The curve through the keys, seen from the share.
        keys = [key - round(share, 9) for key in self.keys]
        weights = mixture(keys, 1, self.interpolation).double()  # type: ignore[arg-type]
        value = weights[0] @ torch.tensor(self.values, dtype=torch.float64)
        return Timeline((0,), (float(value),))

    def mixture(self, num_frames: int) -> Tensor:
        """What each frame takes of each value, float32 [T, K]; see ``at_step`` for steps."""
        assert not self.steps
        return mixture(self.keys, num_frames, self.interpolation, self.loop)

    def curve(self, num_frames: int) -> Tensor:
        """The number of each frame, float32 [T]; exactly the value where it does not change."""
        values = torch.tensor(self.values, dtype=torch.float64)
        if self.constant:
            return values[:1].float().expand(num_frames).clone()
        return (self.mixture(num_frames).double() @ values).float()

    def check(self, name: str, num_frames: int) -> None:
        """Raise InputError for a key that the clip does not have."""
        if not self.steps and self.keys[-1] >= num_frames:
            raise InputError(
                f'{name}: the key {self.keys[-1]} lies beyond the clip, whose {num_frames} frames '
                f'are 0 to {num_frames - 1}.'
            )


def text_timeline(value: Any, name: str) -> Timeline:
    """A prompt as a timeline.

    Args:
        value: a text, perhaps with lines of keyframes, or keyframes.
        name: of the argument, for messages.

    Raises:
        InputError: naming the key or value.
    """
    if isinstance(value, str):
        entries = _read_lines(value, name)
        if entries is None:
            return Timeline((0,), (value,))
        value = entries
    if isinstance(value, Timeline) or not isinstance(value, Mapping):
        if isinstance(value, Timeline) and all(isinstance(text, str) for text in value.values):
            return value
        raise InputError(f'{name} must be text, got {type(value).__name__} {value!r}.')
    return _from_mapping(value, name, _text, _FRAMES)


def number_timeline(
    value: Any,
    name: str,
    num_frames: int | None,
    low: float = 0,
    high: float = 100,
    steps: bool = True,
) -> Timeline:
    """A number, one for each frame, or keyframes over frames or steps, each in [low, high].

    Args:
        value: in one of the forms of this module.
        name: of the argument, for messages.
        num_frames: T; None checks no frame.
        low: smallest number.
        high: largest number.
        steps: whether the argument may change over the steps.

    Raises:
        InputError: naming the key or value.
    """

    def number(item: Any, where: str) -> float:
        real = isinstance(item, (int, float)) and not isinstance(item, bool)
        if not real or not low <= item <= high:
            raise InputError(f'{where}={item!r}: expected a number in [{low}, {high}].')
        return float(item)

    if isinstance(value, Timeline):
        value = _as_mapping(value)
    if isinstance(value, Mapping):
        timeline = _numbers(value, name, number, steps)
        if num_frames is not None:
            timeline.check(name, num_frames)
        return timeline
    if isinstance(value, (list, tuple)):
        if num_frames is not None and len(value) != num_frames:
            raise InputError(
                f'{name}: {len(value)} numbers for {num_frames} frames; give one for each, or '
                'keyframes such as {0: 1.0, 8: 0.5}.'
            )
        values = tuple(number(item, f'{name}[{i}]') for i, item in enumerate(value))
        return Timeline(tuple(range(len(values))), values, 'step')
    return Timeline((0,), (number(value, name),))


def _as_mapping(timeline: Timeline) -> dict[Any, Any]:
    """A timeline as the data that it is read from."""
    keys = dict(zip(timeline.keys, timeline.values, strict=True))
    settings: dict[Any, Any] = {'interpolation': timeline.interpolation}
    if timeline.steps:
        return {STEPS: keys | settings}
    return keys | settings | {'loop': timeline.loop}


def _numbers(
    value: Mapping[Any, Any], name: str, number: Callable[[Any, str], float], steps: bool
) -> Timeline:
    """Keyframes over frames, or over steps where these are allowed."""
    if STEPS not in value:
        return _from_mapping(value, name, number, _FRAMES)
    if not steps:
        raise InputError(f'{name} changes over frames, not over steps: give {{0: ...}}.')
    others = [key for key in value if key != STEPS]
    if others:
        raise InputError(
            f'{name}: the key {others[0]!r} beside {STEPS!r}: an argument changes over frames or '
            f'over steps, whose settings stand inside, such as {{{STEPS!r}: {{0.0: ..., '
            "'interpolation': 'step'}}."
        )
    if not isinstance(value[STEPS], Mapping):
        raise InputError(
            f'{name}[{STEPS!r}]={value[STEPS]!r}: expected numbers by shares of the steps, such as '
            '{0.0: ..., 0.5: ...}.'
        )
    return _from_mapping(value[STEPS], f'{name}[{STEPS!r}]', number, _STEPS)


def _from_mapping(
    value: Mapping[Any, Any], name: str, convert: Callable[[Any, str], Any], axis: _Axis
) -> Timeline:
    settings = {key: value[key] for key in value if key in axis.settings}
    frames: dict[Any, Any] = {}
    for key, item in value.items():
        if key in axis.settings:
            continue
        frame = axis.read(key)
        if frame is None:
            raise InputError(
                f'{name}: the key {key!r} is no {axis.noun}; expected {axis.expected}, or '
                f'{" or ".join(axis.settings)}.{axis.near(key)}{nearest(key, axis.settings)}'
            )
        if frame in frames:
            raise InputError(f'{name}: {axis.noun} {frame} appears twice.')
        frames[frame] = convert(item, f'{name}[{frame}]')
    if not frames:
        raise InputError(f'{name} has no keyframes: give at least one, such as {{0: ...}}.')
    easing, loop = settings.get('interpolation', 'linear'), settings.get('loop', False)
    if not isinstance(easing, str) or easing not in EASINGS:
        raise InputError(
            f'{name}: interpolation={easing!r}, expected one of {", ".join(EASINGS)}.'
            f'{nearest(easing, EASINGS)}'
        )
    if not isinstance(loop, bool):
        raise InputError(f'{name}: loop={loop!r}, expected True or False.')
    keys = sorted(frames)
    values = tuple(frames[key] for key in keys)
    return Timeline(tuple(keys), values, easing, loop, axis is _STEPS)


def _frame(key: Any) -> int | None:
    """A key as a frame; in a recipe, which is JSON, keys are digits."""
    if isinstance(key, str) and key.isascii() and key.isdigit():
        return int(key)
    return key if isinstance(key, int) and not isinstance(key, bool) and key >= 0 else None


def _share(key: Any) -> float | None:
    """A key as a share of the steps; in a recipe it is text."""
    number = _number(key)
    return number if number is not None and 0 <= number <= 1 else None


def _number(key: Any) -> float | None:
    if isinstance(key, bool) or not isinstance(key, (str, int, float)):
        return None
    try:
        return float(key)
    except ValueError:
        return None


class _Axis(NamedTuple):
    """What the keys of a timeline are."""

    read: Callable[[Any], Any]  # a key, None for what is none
    noun: str
    expected: str
    settings: tuple[str, ...]
    last: float  # largest key

    def near(self, key: Any) -> str:
        """A hint at the nearest key."""
        number = _number(key)
        if number is None or not math.isfinite(number):
            return ''
        inside = min(max(number, 0), self.last)
        return f' The nearest is {inside if self.last == 1 else round(inside)}.'


_FRAMES = _Axis(_frame, 'frame', 'whole numbers from 0', SETTINGS, math.inf)
_STEPS = _Axis(_share, 'share of the steps', 'numbers from 0 to 1', SETTINGS[:1], 1)


def _text(item: Any, where: str) -> str:
    if not isinstance(item, str):
        raise InputError(f'{where} must be text, got {type(item).__name__} {item!r}.')
    return item


def _read_lines(text: str, name: str) -> dict[Any, Any] | None:
    """Keyframes out of lines; None where the text has none."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2 or not any(_KEY.fullmatch(line) for line in lines):
        return None
    entries: dict[Any, Any] = {}
    head: list[str] = []
    tail: list[str] = []
    for line in lines:
        key, setting = _KEY.fullmatch(line), _SETTING.fullmatch(line)
        if key is not None:
            if int(key[1]) in entries:
                raise InputError(f'{name}: frame {int(key[1])} appears twice.')
            entries[int(key[1])] = key[2].strip()
        elif setting is not None:
            entries[setting[1]] = _FLAGS.get(setting[2].lower(), setting[2])
        else:
            (tail if any(isinstance(k, int) for k in entries) else head).append(line.strip())
    for frame in [key for key in entries if isinstance(key, int)]:
        parts = [part.strip(' ,') for part in (*head, entries[frame], *tail)]
        entries[frame] = ', '.join(part for part in parts if part)
    return entries

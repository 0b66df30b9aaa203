"""Timelines: an argument that changes over the frames of a clip.

The same forms serve every argument that can change:

    'a meadow in spring', 7.5           the same in all frames
    {0: 'spring', 8: 'summer'}          keyframes, mixed in between
    {0: 7.5, 8: 3.0, 'interpolation': 'ease-in-out', 'loop': True}
    [1.0, 1.0, 0.5, 0.0]                numbers: one for each frame
    '''0: spring                        texts: lines of a prompt, as on a command line
    8: summer'''

(In a config that inherits a text or number, keyframes take ``'_delete_': True`` beside them.)

In lines, text before the first key is put before every prompt and text after the last key's line
behind every prompt; ``interpolation: step`` may be a line of its own. A text of one line, or
without a numbered line, is a prompt as it stands.

T frames, K keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmvideo.diffusion.curves import EASINGS, mixture
from mmvideo.errors import InputError, nearest

SETTINGS = ('interpolation', 'loop')
_KEY = re.compile(r'\s*(\d+)\s*:\s*(.*)')
_SETTING = re.compile(r'\s*(interpolation|loop)\s*:\s*([\w-]+)\s*')
_FLAGS = {'true': True, 'false': False, 'yes': True, 'no': False}


@dataclass(frozen=True)
class Timeline:
    """Values at some frames, and what is between them.

    Attributes:
        keys: frames, rising.
        values: texts or numbers, one a key.
        interpolation: a name of ``mmvideo.diffusion.curves.EASINGS``.
        loop: after the last key on to the first, so that a clip that repeats has no jump.
    """

    keys: tuple[int, ...]
    values: tuple[Any, ...]
    interpolation: str = 'linear'
    loop: bool = False

    @property
    def constant(self) -> bool:
        """Whether all frames have the same value."""
        return len(set(self.values)) == 1

    def mixture(self, num_frames: int) -> Tensor:
        """What each frame takes of each value, float32 [T, K]."""
        return mixture(self.keys, num_frames, self.interpolation, self.loop)

    def curve(self, num_frames: int) -> Tensor:
        """The number of each frame, float32 [T]; exactly the value where it does not change."""
        values = torch.tensor(self.values, dtype=torch.float64)
        if self.constant:
            return values[:1].float().expand(num_frames).clone()
        return (self.mixture(num_frames).double() @ values).float()

    def check(self, name: str, num_frames: int) -> None:
        """Raise InputError for a key that the clip does not have."""
        if self.keys[-1] >= num_frames:
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
    return _from_mapping(value, name, _text)


def number_timeline(
    value: Any, name: str, num_frames: int, low: float = 0, high: float = 100
) -> Timeline:
    """A number, one for each frame, or keyframes, each in [low, high].

    Raises:
        InputError: naming the key or value.
    """

    def number(item: Any, where: str) -> float:
        real = isinstance(item, (int, float)) and not isinstance(item, bool)
        if not real or not low <= item <= high:
            raise InputError(f'{where}={item!r}: expected a number in [{low}, {high}].')
        return float(item)

    if isinstance(value, Timeline):
        value = dict(zip(value.keys, value.values, strict=True)) | {
            'interpolation': value.interpolation,
            'loop': value.loop,
        }
    if isinstance(value, Mapping):
        timeline = _from_mapping(value, name, number)
        timeline.check(name, num_frames)
        return timeline
    if isinstance(value, (list, tuple)):
        if len(value) != num_frames:
            raise InputError(
                f'{name}: {len(value)} numbers for {num_frames} frames; give one for each, or '
                'keyframes such as {0: 1.0, 8: 0.5}.'
            )
        values = tuple(number(item, f'{name}[{i}]') for i, item in enumerate(value))
        return Timeline(tuple(range(num_frames)), values, 'step')
    return Timeline((0,), (number(value, name),))


def is_keyframes(value: Any) -> bool:
    """Whether a mapping's keys are frames, and not names of something else."""
    return isinstance(value, Mapping) and any(_frame(key) is not None for key in value)


def _from_mapping(
    value: Mapping[Any, Any], name: str, convert: Callable[[Any, str], Any]
) -> Timeline:
    settings = {key: value[key] for key in value if key in SETTINGS}
    frames: dict[int, Any] = {}
    for key, item in value.items():
        if key in SETTINGS:
            continue
        frame = _frame(key)
        if frame is None:
            raise InputError(
                f'{name}: the key {key!r} is no frame; expected whole numbers from 0, or one of '
                f'{", ".join(SETTINGS)}.{nearest(key, SETTINGS)}'
            )
        if frame in frames:
            raise InputError(f'{name}: frame {frame} appears twice.')
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
    return Timeline(tuple(keys), tuple(frames[key] for key in keys), easing, loop)


def _frame(key: Any) -> int | None:
    """A key as a frame; in a recipe, which is JSON, keys are digits."""
    if isinstance(key, str) and key.isascii() and key.isdigit():
        return int(key)
    return key if isinstance(key, int) and not isinstance(key, bool) and key >= 0 else None


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

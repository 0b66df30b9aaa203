"""Clips that a video starts from or is controlled by: from what a user has to frames.

T frames, C channels, H W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmvideo.errors import InputError, nearest, nearest_beside
from mmvideo.media.clip_file import DEMUXERS, open_clip
from mmvideo.models.conditioning.image import open_rgb, prepare_condition_image, to_rgb
from mmvideo.shipped import is_shipped, shipped_path

if TYPE_CHECKING:
    from PIL import Image

ANIMATIONS = ('.gif', '.webp')
PICTURES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff')
SUFFIXES = (*DEMUXERS, *ANIMATIONS)
CUT = ('clip', 'start', 'stride')
_MOST_START = 10_000_000
_FOUND = 10_000  # frames that are counted for a message


def prepare_clip(
    clip: Any,
    frames: int | None,
    height: int | None = None,
    width: int | None = None,
    multiple: int = 8,
    name: str = 'video',
    most: int | None = None,
) -> Tensor:
    """A clip as an encoder takes it, float32 [T, 3, H, W] in [-1, 1].

    Args:
        clip: path of an mp4, m4v, mov, mkv, webm, avi, gif or webp, of a folder of pictures (in
            the order of the numbers in their names), or ``package://PATH``; a list of pictures, see
            ``prepare_condition_image``; an array [T, H, W, 3] or tensor [T, 3, H, W], likewise; or
            ``dict(clip=..., start=0, stride=1)``, which takes every ``stride``-th frame of one.
        frames: how many it must have; a dict takes as many of a longer one. None takes all.
        height: pixels; None follows the first frame as ``prepare_condition_image`` does.
        width: pixels, likewise.
        multiple: pixels of one latent.
        name: of the argument, for messages.
        most: how many it may have, where ``frames`` is None.

    Raises:
        InputError: naming the clip and what is wrong with it.
    """
    prepared: list[Tensor] = []
    native: tuple[int, int] | None = None
    for picture in read_clip(clip, frames, name):
        if len(prepared) == most:
            raise InputError(f'{_called(clip, name)} has more than {most} frames.')
        if native not in (None, picture.size):
            assert native is not None
            raise InputError(
                f'{name}: frame {len(prepared)} is {picture.width}x{picture.height} px, the first '
                f'{native[0]}x{native[1]}: the frames of a clip have one size.'
            )
        native = picture.size
        prepared.append(prepare_condition_image(picture, height, width, multiple))
    return torch.stack(prepared)


def read_clip(clip: Any, frames: int | None, name: str = 'video') -> Iterator[Image.Image]:
    """The frames of a clip as RGB pictures of their own size; arguments as ``prepare_clip``.

    Raises:
        InputError: also where there are too few frames, or more than ``frames``.
    """
    clip, start, stride, cut = _cut(clip, name)
    source = islice(_frames(clip, name), start, None, stride)
    count = 0
    for picture in source if frames is None else islice(source, frames):
        count += 1
        yield picture
    if frames is None and count == 0:
        raise InputError(f'{_called(clip, name)} has no frames from {start} on.')
    if frames is None:
        return
    if count < frames:
        where = f' from {start} on at stride {stride}' if cut else ''
        raise InputError(
            f'{_called(clip, name)} has only {count} frames{where}, video_length={frames}: ask for '
            f'video_length={max(count, 1)}, or give a longer clip.'
        )
    more = sum(1 for _ in islice(source, _FOUND))
    if more and not cut:
        total = f'{count + more}' if more < _FOUND else f'more than {_FOUND}'
        raise InputError(
            f'{_called(clip, name)} has {total} frames, video_length={frames}: take a part of it '
            f'with dict(clip=..., start=0, stride={max(1, (count + more) // frames)}), or ask for '
            'as many frames.'
        )


def frames_as_pictures(clip: Any, num_frames: int, chosen: Sequence[int]) -> list[Image.Image]:
    """Some frames of a clip of ``num_frames``, by their indices."""
    frames = list(read_clip(clip, num_frames))
    return [frames[index] for index in chosen]


def _cut(clip: Any, name: str) -> tuple[Any, int, int, bool]:
    """The clip itself, its first frame, the stride, and whether a dict said them."""
    if not isinstance(clip, Mapping):
        return clip, 0, 1, False
    for key in clip:
        if key not in CUT:
            raise InputError(f'{name} takes no {key!r}; it takes {CUT}.{nearest(key, CUT)}')
    if clip.get('clip') is None:
        raise InputError(f"{name}: the dict names no 'clip': give dict(clip='a.mp4', start=0).")
    start, stride = clip.get('start', 0), clip.get('stride', 1)
    for key, value, low in (('start', start, 0), ('stride', stride, 1)):
        if type(value) is not int or not low <= value <= _MOST_START:
            raise InputError(f'{name}.{key}={value!r}: expected an integer >= {low}.')
    return clip['clip'], start, stride, True


def _frames(clip: Any, name: str) -> Iterator[Image.Image]:
    if isinstance(clip, (str, Path)):
        return _from_path(clip)
    if isinstance(clip, (np.ndarray, Tensor)):
        if clip.ndim != 4:
            shape = '[T, H, W, 3]' if isinstance(clip, np.ndarray) else '[T, 3, H, W]'
            raise InputError(f'{name} has the shape {list(clip.shape)}: expected {shape}.')
        clip = list(clip)
    if not isinstance(clip, Sequence):
        raise InputError(
            f'{name} is a {type(clip).__name__}: expected a path, a list of pictures, an array or '
            'a tensor.'
        )
    if not clip:
        raise InputError(f'{name} is an empty list: expected its frames.')
    return (open_rgb(frame, _frame_name(frame, name, i)) for i, frame in enumerate(clip))


def _from_path(given: str | Path) -> Iterator[Image.Image]:
    path = shipped_path(str(given)) if is_shipped(str(given)) else Path(given).expanduser()
    if path.is_dir():
        return (open_rgb(file, str(file)) for file in pictures_of(path))
    suffix = path.suffix.lower()
    if suffix in PICTURES and suffix not in ANIMATIONS:
        return iter([open_rgb(path, str(path))])
    if suffix not in SUFFIXES or not path.is_file() or path.stat().st_size == 0:
        raise InputError(_unusable(path, str(given)))
    return _video(path) if suffix in DEMUXERS else _animation(path)


def pictures_of(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of the numbers in their names."""
    found = [entry for entry in folder.iterdir() if entry.suffix.lower() in PICTURES]
    if not found:
        raise InputError(f'{folder} has no pictures: expected frames such as 0001.png.')
    return sorted(found, key=lambda path: _natural(path.name))


def _natural(text: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r'\d+|\D+', text.lower())
    return [(0, int(p), '') if p.isascii() and p.isdigit() else (1, 0, p) for p in parts]


def _video(path: Path) -> Iterator[Image.Image]:
    from PIL import Image

    with open_clip(path) as clip:
        for frame in clip.frames():
            yield Image.fromarray(frame)


def _animation(path: Path) -> Iterator[Image.Image]:
    from PIL import Image

    open_rgb(path, str(path))  # says what is wrong with a file that is no picture
    with Image.open(path) as image:
        for index in range(getattr(image, 'n_frames', 1)):
            try:
                image.seek(index)
                frame = image.convert('RGBA' if image.has_transparency_data else 'RGB')
            except (OSError, EOFError, SyntaxError, ValueError) as error:
                raise InputError(f'{path} is damaged at frame {index}: {error}') from error
            yield to_rgb(frame, str(path))


def _unusable(path: Path, given: str) -> str:
    if '://' in given and not is_shipped(given):
        return f'{given} is no file: download the clip and give its path.'
    if not path.is_file():
        return f'{path} does not exist.{nearest_beside(path)}'
    if path.stat().st_size == 0:
        return f'{path} is empty (0 bytes).'
    return f'{path} is no clip of a known format: expected {", ".join(SUFFIXES)} or a folder.'


def _called(clip: Any, name: str) -> str:
    return f'{name}: {clip}' if isinstance(clip, (str, Path)) else name


def _frame_name(frame: Any, name: str, index: int) -> str:
    return str(frame) if isinstance(frame, (str, Path)) else f'{name}[{index}]'

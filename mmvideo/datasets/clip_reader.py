"""Frames of a video file at given times.

T frames, H W of the file's pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmvideo.errors import InputError, nearest


@dataclass(frozen=True)
class ClipFacts:
    """What is known of a file before its frames are decoded.

    Attributes:
        frames: how many there are.
        rate: frames a second, on average.
    """

    frames: int
    rate: float


def read_facts(path: Path) -> ClipFacts:
    """Number and rate of a file's frames.

    Raises:
        InputError: the file is missing, damaged or has no frames.
    """
    with _opened(path) as (container, stream):
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    if not frames or not rate:
        raise InputError(f'{path} has no frames in it.')
    return ClipFacts(frames, rate)


def read_at(path: Path, times: Sequence[float]) -> np.ndarray:
    """The frames on display at ``times``, seconds from the file's first frame, rising.

    Decoding starts at the last key frame before the first time. A time behind the last frame has
    that frame.

    Returns:
        uint8 [T, H, W, 3], RGB.

    Raises:
        InputError: the file is missing, damaged, or its frames change their size.
    """
    found: list[np.ndarray] = []
    with _opened(path) as (container, stream):
        shown: Any = None
        for second, frame in _from(container, stream, times[0]):
            while len(found) < len(times) and times[len(found)] < second and shown is not None:
                found.append(_picture(shown))
            if len(found) == len(times):
                break
            shown = frame
        if shown is None:
            raise InputError(f'{path} has no frames in it.')
        found += [_picture(shown)] * (len(times) - len(found))
    if len({picture.shape for picture in found}) > 1:
        raise InputError(f'{path}: its frames have more than one size.')
    return np.stack(found)


def _from(container: Any, stream: Any, second: float) -> Iterator[tuple[float, Any]]:
    """(seconds from the first frame, frame) from the last key frame before ``second`` on."""
    begin, unit = stream.start_time or 0, stream.time_base
    container.seek(begin + int(second / unit), stream=stream, backward=True)
    for frame in container.decode(stream):
        if frame.pts is not None:
            yield float((frame.pts - begin) * unit), frame


def _picture(frame: Any) -> np.ndarray:
    picture = frame.to_ndarray(format='rgb24')
    # A camera's orientation, in degrees against the clock.
    return np.rot90(picture, round(getattr(frame, 'rotation', 0) / 90) % 4)


class _opened:
    """A file's container and its first video stream; the library's errors become ours."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> tuple[Any, Any]:
        import av

        if not self.path.is_file():
            folder = self.path.parent
            there = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
            raise InputError(f'{self.path} does not exist.{nearest(self.path.name, there)}')
        try:
            self.container = av.open(str(self.path))
        except (av.FFmpegError, UnicodeDecodeError) as error:
            raise InputError(f'{self.path} is damaged, or no video: {error}') from error
        if not self.container.streams.video:
            self.container.close()
            raise InputError(f'{self.path} has no video in it.')
        stream = self.container.streams.video[0]
        stream.thread_type = 'AUTO'
        return self.container, stream

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import av

        self.container.close()
        if isinstance(error, (av.FFmpegError, UnicodeDecodeError)):
            raise InputError(f'{self.path} is damaged: {error}') from error

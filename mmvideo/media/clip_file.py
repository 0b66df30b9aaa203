"""Frames of a video file: all of them in their order, or those at given times.

T frames, H W of the file's pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmvideo.errors import InputError, nearest_beside

# Demuxers by suffix: a file is opened as what it is called and never probed, because a playlist
# in disguise would have other files and addresses read.
DEMUXERS = {
    **dict.fromkeys(('.mp4', '.m4v', '.mov'), 'mov'),
    **dict.fromkeys(('.mkv', '.webm'), 'matroska'),
    '.avi': 'avi',
}


@dataclass(frozen=True)
class ClipFacts:
    """What is known of a file before its frames are decoded.

    Attributes:
        frames: how many there are.
        rate: frames a second, on average.
    """

    frames: int
    rate: float


class ClipFile:
    """A video file that is open: its facts, its frames, and those at given times."""

    def __init__(self, path: Path, container: Any, stream: Any) -> None:
        self.path, self._container, self._stream = path, container, stream

    def facts(self) -> ClipFacts:
        """Number and rate of the frames. A file that does not say its number is read through.

        Raises:
            InputError: there are none.
        """
        stream = self._stream
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        frames = stream.frames or sum(1 for p in self._container.demux(stream) if p.size)
        if not frames or not rate:
            raise InputError(f'{self.path} has no frames in it.')
        return ClipFacts(frames, rate)

    def frames(self) -> Iterator[np.ndarray]:
        """Every frame in its order, uint8 [H, W, 3], RGB."""
        return map(_picture, self._container.decode(self._stream))

    def at(self, times: Sequence[float]) -> np.ndarray:
        """The frames on display at ``times``, seconds from the file's first frame, rising.

        Decoding starts at the last key frame before the first time. A time behind the last frame
        has that frame.

        Returns:
            uint8 [T, H, W, 3], RGB.

        Raises:
            InputError: there are no frames, or they change their size.
        """
        found: list[np.ndarray] = []
        shown: Any = None
        for second, frame in self._from(times[0]):
            while len(found) < len(times) and times[len(found)] < second and shown is not None:
                found.append(_picture(shown))
            if len(found) == len(times):
                break
            shown = frame
        if shown is None:
            raise InputError(f'{self.path} has no frames in it.')
        found += [_picture(shown)] * (len(times) - len(found))
        if len({picture.shape for picture in found}) > 1:
            raise InputError(f'{self.path}: its frames have more than one size.')
        return np.stack(found)

    def _from(self, second: float) -> Iterator[tuple[float, Any]]:
        """(seconds from the first frame, frame) from the last key frame before ``second`` on."""
        begin, unit = self._stream.start_time or 0, self._stream.time_base
        self._container.seek(begin + int(second / unit), stream=self._stream, backward=True)
        for frame in self._container.decode(self._stream):
            if frame.pts is not None:
                yield float((frame.pts - begin) * unit), frame


@contextmanager
def open_clip(path: Path) -> Iterator[ClipFile]:
    """Open a video file; errors of the library, while it is open too, become ours.

    Raises:
        InputError: the file is missing, of an unknown format, damaged or no video.
    """
    import av

    if not path.is_file():
        raise InputError(f'{path} does not exist.{nearest_beside(path)}')
    suffix = path.suffix.lower()
    if suffix not in DEMUXERS:
        raise InputError(f'{path} is no clip of a known format: expected {", ".join(DEMUXERS)}.')
    try:
        with av.open(str(path), format=DEMUXERS[suffix]) as container:
            if not container.streams.video:
                raise InputError(f'{path} has no video in it.')
            stream = container.streams.video[0]
            stream.thread_type = 'AUTO'
            yield ClipFile(path, container, stream)
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise InputError(f'{path} is damaged, or no {suffix} file: {error}') from error


def _picture(frame: Any) -> np.ndarray:
    picture = frame.to_ndarray(format='rgb24')
    # A camera's orientation, in degrees against the clock.
    return np.ascontiguousarray(np.rot90(picture, round(getattr(frame, 'rotation', 0) / 90) % 4))

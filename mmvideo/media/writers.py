"""Frames to files: mp4, gif, webp and png, each complete or absent, with the recipe inside.

A file is written beside its final name, synced and then renamed, so whatever stops the process
leaves either the whole file or none. T frames, H W picture size in pixels.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmvideo.errors import InputError, nearest
from mmvideo.media.encoders import Encoder, GifEncoder, Mp4Encoder, WebpEncoder, encode_png
from mmvideo.media.recipe import recipe_text

SUFFIXES = ('.mp4', '.gif', '.webp', '.png')
NAME_LIMIT = 255  # bytes of a file name on ext4, XFS, APFS and NTFS alike
_ENCODERS: dict[str, Callable[..., Encoder]] = {
    '.mp4': Mp4Encoder,
    '.gif': GifEncoder,
    '.webp': WebpEncoder,
}
# A clip, or its parts one after the other.
Part = np.ndarray | torch.Tensor
Frames = Part | Iterator[np.ndarray] | Iterator[torch.Tensor]
GIF_MAX_FPS = 50  # players replace delays under two hundredths of a second by a tenth


def write_video(
    path: str | Path,
    frames: Frames,
    fps: float = 8,
    recipe: dict[str, Any] | None = None,
    overwrite: bool = True,
    num_frames: int | None = None,
) -> Path:
    """Write ``frames`` in the format that the suffix of ``path`` names.

    Args:
        path: ``.mp4`` (H.264), ``.gif``, ``.webp``, or ``.png``: one picture for one frame, else
            the series ``name_0000.png``, ``name_0001.png`` ...
        frames: uint8 [T, H, W, 3], or an iterator over parts [t, H, W, 3] of a clip, of which one
            is held at a time.
        fps: frames a second.
        recipe: see ``mmvideo.media.recipe``; written into the file, in a series into each picture,
            with a section ``output`` that states the frames as they were given.
        overwrite: replace an existing file; False takes the next free name, ``name-1.mp4``.
        num_frames: T, for an iterator.

    Returns:
        The file, or the first picture of a series.

    Raises:
        InputError: naming the suffix, folder, frames or rate that cannot be used.
    """
    if isinstance(frames, np.ndarray | torch.Tensor):
        parts: Iterator[Part] = iter([frames])
        num_frames = len(frames)
    else:
        parts = iter(frames)
    if num_frames is None:
        raise InputError('num_frames is missing: say how many frames the parts have together.')
    with VideoWriter(path, num_frames, fps, recipe, overwrite) as writer:
        for part in parts:
            writer.add(part)
        return writer.finish()


class VideoWriter:
    """A file that is written while its frames are made.

    ``with VideoWriter(path, 32) as writer: writer.add(frames) ...; writer.finish()``; without
    ``finish`` nothing is left.

    Args: see ``write_video``.
    """

    def __init__(
        self,
        path: str | Path,
        num_frames: int,
        fps: float = 8,
        recipe: dict[str, Any] | None = None,
        overwrite: bool = True,
    ) -> None:
        self.path = check_output(path)
        check_fps(fps, self.path.suffix)
        self.num_frames, self.fps, self.recipe = num_frames, fps, recipe
        self.overwrite = overwrite
        self.done = 0
        self._size: tuple[int, int] | None = None
        self._encoder: Encoder | None = None
        self._aside: Path | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, frames: np.ndarray | torch.Tensor) -> None:
        """Encode frames, uint8 [t, H, W, 3], of the size of the first.

        Raises:
            InputError: frames of another kind or size.
        """
        pictures = _checked_frames(frames)
        size = pictures.shape[1:3]
        if self._encoder is None:
            self._open(*size)
        if size != self._size:
            raise InputError(f'frames of {size} after frames of {self._size}: expected one size.')
        assert self._encoder is not None
        for picture in pictures:
            self._encoder.add(picture)
        self.done += len(pictures)

    def finish(self) -> Path:
        """Give the file its name.

        Returns:
            The file, or the first picture of a series.

        Raises:
            InputError: more or fewer frames than were announced.
        """
        if self._encoder is None or self.done != self.num_frames:
            raise InputError(
                f'{self.path}: {self.done} frames were written, expected {self.num_frames}.'
            )
        self._encoder.finish()
        if isinstance(self._encoder, _Pictures):
            return self._encoder.publish(self.path, self.overwrite)
        assert self._aside is not None
        return _publish(self._aside, self.path, self.overwrite)

    def _open(self, height: int, width: int) -> None:
        self._size = (height, width)
        text = None
        if self.recipe is not None:
            count, rate = self.num_frames, self.fps
            output = _output(self.path, count, height, width, rate)
            text = recipe_text({**self.recipe, 'output': output})
        encoder: Encoder
        if self.path.suffix.lower() == '.png':
            encoder = _Pictures(self.path.parent, text)
        else:
            self._aside = self._stack.enter_context(_aside(self.path.parent))
            kind = _ENCODERS[self.path.suffix.lower()]
            encoder = kind(self._aside, height, width, self.fps, text)
        self._encoder = encoder
        self._stack.callback(encoder.close)


def check_output(path: str | Path, folder_is_made: bool = True) -> Path:
    """Return ``path`` as a Path if a file can be written there; cheap, so done before all work.

    Args:
        path: of the file.
        folder_is_made: False where its folder will be made.

    Raises:
        InputError: unknown suffix, a folder that is missing or cannot be written to, a name that
            is too long or that a folder has.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f'{path}: cannot write {path.suffix or "a file without a suffix"!r}; '
            f'the formats are {", ".join(SUFFIXES)}.{nearest(path.suffix, SUFFIXES)}'
        )
    # A series adds '_0000', a taken name '-1': leave room for both.
    if len(os.fsencode(path.name)) > NAME_LIMIT - 10:
        raise InputError(f'{path.name[:40]}...: a file name may have {NAME_LIMIT - 10} bytes.')
    if not folder_is_made:
        return path
    if not path.parent.is_dir():
        siblings = path.parent.parent.iterdir() if path.parent.parent.is_dir() else []
        hint = nearest(path.parent.name, [p.name for p in siblings if p.is_dir()])
        raise InputError(f'{path}: there is no folder {str(path.parent)!r}.{hint}')
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f'{path}: the folder {str(path.parent)!r} cannot be written to.')
    if path.is_dir():
        raise InputError(f'{path} is a folder; expected the name of a file.')
    return path


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'{folder}: the folder cannot be made ({error.strerror}).') from None


def coded_size(suffix: str, height: int, width: int) -> tuple[int, int]:
    """Height and width that a file stores: H.264 in 4:2:0, which every player shows, is even."""
    if suffix.lower() == '.mp4':
        return height + height % 2, width + width % 2
    return height, width


def to_frames(sample: torch.Tensor) -> np.ndarray:
    """Float [C, T, H, W] in [0, 1] to uint8 [T, H, W, 3]; a single channel becomes grey."""
    video = sample.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    video = video.expand(3, -1, -1, -1) if video.shape[0] == 1 else video
    return video.permute(1, 2, 3, 0).cpu().contiguous().numpy()


def save_videos_grid(
    videos: torch.Tensor,
    path: str | Path,
    rescale: bool = False,
    n_rows: int = 6,
    fps: float = 8,
    recipe: dict[str, Any] | None = None,
) -> Path:
    """Write several videos as one grid, with the arguments that MMagic's function has.

    The folder is made, as MMagic does.

    Args:
        videos: float [N, C, T, H, W] in [0, 1], or in [-1, 1] with ``rescale``.
        n_rows: videos in a row (so MMagic and torchvision call it), two pixels of black between.
    """
    if videos.ndim != 5:
        raise InputError(f'videos must be [N, C, T, H, W], got a shape of {tuple(videos.shape)}.')
    videos = (videos + 1) / 2 if rescale else videos
    make_folder(check_output(path, folder_is_made=False).parent)
    return write_video(path, to_frames(_grid(videos.float(), n_rows)), fps, recipe)


def _grid(videos: torch.Tensor, columns: int, gap: int = 2) -> torch.Tensor:
    # [N, C, T, H, W] -> [C, T, rows * (H + gap) + gap, columns * (W + gap) + gap]
    count, channels, frames, height, width = videos.shape
    if count == 1:
        return videos[0]
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    size = (rows * (height + gap) + gap, columns * (width + gap) + gap)
    grid = videos.new_zeros(channels, frames, *size)
    for index, video in enumerate(videos):
        top = index // columns * (height + gap) + gap
        left = index % columns * (width + gap) + gap
        grid[:, :, top : top + height, left : left + width] = video
    return grid


# --- what is given -------------------------------------------------------------------------------


def _checked_frames(frames: np.ndarray | torch.Tensor) -> np.ndarray:
    array = (
        frames.detach().cpu().numpy() if isinstance(frames, torch.Tensor) else np.asarray(frames)
    )
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise InputError(
            f'frames must be uint8 [T, H, W, 3], got {array.dtype} {list(array.shape)}.'
        )
    return np.ascontiguousarray(array)


def check_fps(fps: float, suffix: str) -> None:
    """Raise InputError for a rate that a format cannot show."""
    limit = GIF_MAX_FPS if suffix.lower() == '.gif' else 240
    if not 0.1 <= fps <= limit:
        raise InputError(f'fps={fps}: a {suffix} shows between 0.1 and {limit} frames a second.')


def _output(path: Path, count: int, height: int, width: int, fps: float) -> dict[str, Any]:
    output = dict(frames=count, height=height, width=width, fps=fps)
    coded = coded_size(path.suffix, height, width)
    if coded != (height, width):
        output['stored_height'], output['stored_width'] = coded
    return output


# --- pictures ------------------------------------------------------------------------------------


class _Pictures:
    """One ``name.png``, or a series that appears only after its last picture was encoded."""

    def __init__(self, folder: Path, text: str | None) -> None:
        self._folder, self._text = folder, text
        self._asides: list[Path] = []
        self._stack = contextlib.ExitStack()

    def add(self, picture: np.ndarray) -> None:
        aside = self._stack.enter_context(_aside(self._folder))
        encode_png(aside, picture, self._text)
        self._asides.append(aside)

    def finish(self) -> None:
        """Each picture is complete already."""

    def publish(self, path: Path, overwrite: bool) -> Path:
        if len(self._asides) == 1:
            return _publish(self._asides[0], path, overwrite)
        stem = path.with_suffix('') if overwrite else _free_series(path.with_suffix(''))
        for index, aside in enumerate(self._asides):
            _publish(aside, picture_path(stem, index), overwrite=True)
        _remove_tail(stem, len(self._asides))
        return picture_path(stem, 0)

    def close(self) -> None:
        self._stack.close()


def picture_path(stem: Path, index: int) -> Path:
    """The name of a picture of a series: ``stem_0007.png``."""
    return stem.with_name(f'{stem.name}_{index:04d}.png')


def _free_series(stem: Path) -> Path:
    names = itertools.chain(
        [stem], (stem.with_name(f'{stem.name}-{i}') for i in itertools.count(1))
    )
    return next(name for name in names if not picture_path(name, 0).exists())


def _remove_tail(stem: Path, count: int) -> None:
    # Replacing a longer series: its last pictures would pass for ours.
    for index in itertools.count(count):
        if not picture_path(stem, index).exists():
            return
        picture_path(stem, index).unlink()


# --- names and renaming --------------------------------------------------------------------------

_serial = itertools.count()


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A name in ``folder`` to write to; nothing of that name is left whatever happens."""
    aside = folder / f'.mmvideo-{os.getpid()}-{next(_serial)}.tmp'
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def _publish(aside: Path, path: Path, overwrite: bool) -> Path:
    _sync(aside)
    if overwrite:
        os.replace(aside, path)
    else:
        path = _link_free(aside, path)
    _sync(path.parent)
    return path


def _link_free(aside: Path, path: Path) -> Path:
    # link() fails when the name is taken, so two processes never overwrite each other.
    for candidate in free_names(path):
        try:
            os.link(aside, candidate)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            # A file system without hard links: as near as it can be had.
            if candidate.exists():
                continue
            os.replace(aside, candidate)
        return candidate
    raise AssertionError('unreachable: there is always a free name')


def free_names(path: Path) -> Iterator[Path]:
    """``name.mp4``, ``name-1.mp4``, ``name-2.mp4`` ..."""
    yield path
    for index in itertools.count(1):
        yield path.with_name(f'{path.stem}-{index}{path.suffix}')


def safe_stem(text: str, limit: int = 120) -> str:
    """``text`` as a file name: word characters, dots and dashes, at most ``limit`` bytes.

    A dot or dash never leads, so the result is neither hidden, nor a parent folder, nor an option.
    """
    name = re.sub(r'[^\w.-]+', '_', text).strip('._-')
    while len(name.encode('utf-8', 'ignore')) > limit:
        name = name[:-1]
    return name.encode('utf-8', 'ignore').decode('utf-8') or 'video'


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

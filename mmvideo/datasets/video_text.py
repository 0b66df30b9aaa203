"""Video files with captions, as a training sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mmvideo.datasets.annotations import read_table, rows_beside
from mmvideo.datasets.samplers import Draw
from mmvideo.errors import ConfigError, InputError, nearest_beside
from mmvideo.media.clip_file import DEMUXERS, ClipFacts, open_clip
from mmvideo.registry import DATASETS, TRANSFORMS

LOOKED_FOR = 1000  # rows whose files are looked for before a training begins


@DATASETS.register_module()
class VideoTextDataset(Dataset):
    """Windows of video files, with captions from a table or from files beside the clips.

    An item is ``video`` uint8 [T, 3, H, W], ``caption``, ``index``, ``fps`` (of the window, frames
    a second) and the columns ``numbers``. Where a window begins, and whether it is flipped, is
    drawn by a ``ResumableSampler`` anew in every epoch, from its seed, the epoch and the index; for
    a plain index from ``seed`` and the index, so that ``CachedLatents`` encodes the same windows
    everywhere.

    Args:
        root: folder that the paths of clips start from. Without ``annotations`` its clips are the
            data set, also those in folders below, each with its caption in a text file of the same
            name (``a/1.mp4``, ``a/1.txt``).
        annotations: a ``.csv`` file with a head line, or a ``.jsonl`` file with an object a line.
        video: column of a clip's path, or a path with columns in it, such as WebVid's
            ``'{page_dir}/{videoid}.mp4'``.
        caption: column of its caption (WebVid: ``'name'``).
        num_frames: T.
        stride: every which frame of the file is taken.
        fps: instead, how many frames of a second of the file.
        size: (height, width) in px, or one number for both. The picture is scaled until it covers
            that, and cut around its middle.
        flip: probability of a window that is mirrored left to right. Leave it at 0 for captions
            that say left and right.
        pipeline: configs of transforms of the item, in order, such as ``AddAffinity``.
        numbers: columns that items have as floats, such as ``motion_bucket_id``.
        seed: of what is drawn for a plain index.

    Raises:
        ConfigError: an argument, file or column that cannot be right, before anything is decoded.
        InputError: from an item, naming its file: damaged, or too short for a window.
    """

    part_registries = {'pipeline': 'TRANSFORMS'}

    def __init__(
        self,
        root: str | Path,
        num_frames: int,
        size: int | Sequence[int],
        annotations: str | Path | None = None,
        video: str = 'video',
        caption: str = 'caption',
        stride: int | None = None,
        fps: float | None = None,
        flip: float = 0.0,
        pipeline: Sequence[dict] = (),
        numbers: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.root = Path(root).expanduser()
        self.num_frames, self.flip, self.seed = num_frames, flip, seed
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.stride, self.fps = (1 if stride is None and fps is None else stride), fps
        self.numbers = tuple(numbers)
        _check(self)
        self.transforms = [TRANSFORMS.build(part) for part in pipeline]
        if annotations is not None:
            file = Path(annotations).expanduser()
            self.rows = read_table(file, video, caption, self.numbers)
        elif self.numbers:
            raise ConfigError(
                f'numbers={list(numbers)}: columns of annotations, which are not given.'
            )
        else:
            self.rows = rows_beside(self.root)
        self._look_for_files()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item ``index``, see the class."""
        if not -len(self) <= index < len(self):
            raise IndexError(f'clip {index} of {len(self)}')
        if isinstance(index, Draw):
            rng = index.rng()
        else:
            rng = np.random.default_rng([self.seed, index % len(self)])
        row = self.rows[index]
        path = self.root / row.video
        with open_clip(path) as clip:
            times, rate = self._window(path, clip.facts(), rng)
            frames = np.stack([self._fit(frame) for frame in clip.at(times)])
        if rng.random() < self.flip:
            frames = frames[:, :, ::-1]
        video = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
        item = {'video': video, 'caption': row.caption, 'index': int(index) % len(self)}
        item = {**item, 'fps': rate, **row.numbers}
        for transform in self.transforms:
            item = transform(item)
        return item

    def _window(
        self, path: Path, facts: ClipFacts, rng: np.random.Generator
    ) -> tuple[list[float], float]:
        """The times of a window's frames, and its frames a second."""
        rate = self.fps if self.stride is None else facts.rate / self.stride
        assert rate is not None
        needed = (self.num_frames - 1) / rate * facts.rate  # frames of the file, less one
        places = int(facts.frames - needed + 1e-6)
        if places < 1:
            raise InputError(
                f'{path} has {facts.frames} frames at {facts.rate:g} a second: a window of '
                f'{self.num_frames} frames at {rate:g} a second needs {int(np.ceil(needed)) + 1}.'
            )
        # The middle of a frame's time, so that no rounding tells which frame it is.
        begin = (int(rng.integers(places)) + 0.5) / facts.rate
        return [begin + number / rate for number in range(self.num_frames)], rate

    def _fit(self, frame: np.ndarray) -> np.ndarray:
        """A picture that covers ``size``, cut around its middle."""
        import cv2

        height, width = self.size
        scale = max(height / frame.shape[0], width / frame.shape[1])
        if scale != 1:
            # Rounded up, so that it still covers.
            target = [max(round(side * scale), least) for side, least in
                      zip(frame.shape[1::-1], (width, height), strict=True)]  # fmt: skip
            kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            frame = cv2.resize(frame, target, interpolation=kind)
        top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
        return frame[top : top + height, left : left + width]

    def _look_for_files(self) -> None:
        for number, row in enumerate(self.rows[:LOOKED_FOR], 1):
            path = self.root / row.video
            if not path.is_file():
                hint = nearest_beside(path)
                raise ConfigError(f'row {number}: {path} does not exist.{hint}')
            if path.suffix.lower() not in DEMUXERS:
                known = ', '.join(DEMUXERS)
                raise ConfigError(f'row {number}: {path} is no clip of a known format: {known}.')


def _check(data: VideoTextDataset) -> None:
    """Refuse arguments that cannot be right."""
    sides = data.size
    if len(sides) != 2 or not all(type(side) is int and side >= 8 for side in sides):
        raise ConfigError(
            f'size={sides!r}: expected a number of px, or (height, width), from 8 on.'
        )
    if type(data.num_frames) is not int or data.num_frames < 1:
        raise ConfigError(f'num_frames={data.num_frames!r}: expected an integer >= 1.')
    if data.stride is not None and data.fps is not None:
        raise ConfigError('stride and fps say the same in two ways: give one of them.')
    if data.stride is not None and (type(data.stride) is not int or data.stride < 1):
        raise ConfigError(f'stride={data.stride!r}: expected an integer >= 1.')
    if data.fps is not None and not data.fps > 0:
        raise ConfigError(f'fps={data.fps!r}: expected frames a second, above 0.')
    if not 0 <= data.flip <= 1:
        raise ConfigError(f'flip={data.flip!r}: expected a probability, 0 to 1.')

"""Clips from files, folders and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmvideo.errors import InputError
from mmvideo.media.writers import write_video
from mmvideo.models.conditioning.clip import prepare_clip, read_clip


def frames(count: int = 6, side: int = 32) -> np.ndarray:
    """uint8 [T, H, W, 3]: frame t is of grey level 20 * t + 30, so that a reader shows which."""
    return np.stack([np.full((side, side, 3), 20 * t + 30, np.uint8) for t in range(count)])


def levels(clip: Any, count: int | None, **cut: int) -> list[int]:
    """The frames that are read, by their grey level."""
    clip = dict(clip=clip, **cut) if cut else clip
    return [round((np.asarray(p).mean() - 30) / 20) for p in read_clip(clip, count)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('clips')
    for suffix in ('mp4', 'gif', 'webp'):
        write_video(path / f'clip.{suffix}', frames(), 8.0)
    (path / 'frames').mkdir()
    for index, picture in enumerate(frames(12)):
        Image.fromarray(picture).save(path / 'frames' / f'frame{index}.png')
    return path


@pytest.mark.parametrize('suffix', ['mp4', 'gif', 'webp'])
def test_files(folder: Path, suffix: str) -> None:
    path = folder / f'clip.{suffix}'
    assert levels(path, 6) == [0, 1, 2, 3, 4, 5]
    assert levels(str(path), 3, start=1, stride=2) == [1, 3, 5]
    found = prepare_clip(path, 6)
    assert found.shape == (6, 3, 32, 32) and found.dtype == torch.float32
    expected = torch.from_numpy(frames()).permute(0, 3, 1, 2) / 127.5 - 1
    assert float((found - expected).abs().max()) <= 3 / 127.5  # lossy formats


def test_a_folder_is_in_the_order_of_its_numbers(folder: Path) -> None:
    assert levels(folder / 'frames', 12) == list(range(12))


def test_frames_in_memory() -> None:
    array = frames(4)
    expected = torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255
    pictures = [Image.fromarray(picture) for picture in array]
    for clip in (array, tensor, pictures, list(tensor)):
        assert float((prepare_clip(clip, 4) - expected).abs().max()) < 1e-6


def test_a_size_covers_and_cuts(folder: Path) -> None:
    assert prepare_clip(folder / 'clip.gif', 6, 16, 24).shape == (6, 3, 16, 24)


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_what_is_wrong_is_said(folder: Path, tmp_path: Path) -> None:
    mp4 = folder / 'clip.mp4'
    playlist = b'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n'
    (tmp_path / 'empty').mkdir()
    different = [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 16, 3), np.uint8)]
    for clip, count, expected in (
        (mp4, 9, 'has only 6 frames, video_length=9: ask for video_length=6'),
        (mp4, 2, r'has 6 frames, video_length=2: take a part of it with dict.*stride=3'),
        (dict(clip=mp4, start=4), 3, 'only 2 frames from 4 on'),
        (dict(clip=mp4, start=9), None, 'no frames from 9 on'),
        (dict(clip=mp4, begin=4), 2, "takes no 'begin'"),
        (dict(start=4), 2, "names no 'clip'"),
        (dict(clip=mp4, stride=0), 2, 'stride=0: expected an integer >= 1'),
        (folder / 'clip.mp5', 2, "mp5 does not exist. Did you mean 'clip.mp4'"),
        (_write(tmp_path / 'a.mp4', b''), 2, 'is empty'),
        (_write(tmp_path / 'b.mp4', b'no film' * 99), 2, 'is damaged, or no .mp4 file'),
        (_write(tmp_path / 'c.mp4', playlist), 2, 'is damaged, or no .mp4 file'),
        (_write(tmp_path / 'd.gif', b'no film' * 99), 2, 'no picture of a known format'),
        (_write(tmp_path / 'e.mp4', mp4.read_bytes()[:-900]), 6, 'e.mp4'),
        (_write(tmp_path / 'f.txt', b'text'), 2, 'no clip of a known format'),
        ('https://example.org/a.mp4', 2, 'is no file: download'),
        (tmp_path / 'empty', 2, 'has no pictures'),
        (different, 2, r'frame 1 is 16x8 px, the first 8x8'),
        ([], 2, 'empty list'),
        (7, 2, 'video is a int'),
        (np.zeros((8, 8, 3), np.uint8), 2, r'has the shape \[8, 8, 3\]'),
    ):
        with pytest.raises(InputError, match=expected):
            prepare_clip(clip, count)

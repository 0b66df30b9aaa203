"""Real files of every format, read back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from mmvideo.errors import InputError
from mmvideo.media.recipe import FORMAT, read_recipe
from mmvideo.media.writers import (
    check_output,
    coded_size,
    picture_path,
    safe_stem,
    save_videos_grid,
    to_frames,
    write_video,
)

SIZES = [(64, 64), (63, 65), (64, 65), (33, 47)]


def clip(frames: int, height: int, width: int) -> np.ndarray:
    """A smooth gradient with a bright square that moves."""
    y, x = np.mgrid[0:height, 0:width]
    video = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        video[t, ..., 0] = 255 * x // width
        video[t, ..., 1] = 255 * y // height
        video[t, ..., 2] = 60 + t % 3
        video[t, 2:8, t % (width - 6) : t % (width - 6) + 6] = (250, 220, 40)
    return video


def recipe(**arguments: object) -> dict:
    return dict(
        format=FORMAT, name='test', config={'model': {'type': 'PIA'}}, arguments=arguments,
        fps=8, weights=[], machine={}, versions={},
    )  # fmt: skip


def decode(path: Path) -> np.ndarray:
    if path.suffix == '.mp4':
        with av.open(str(path)) as container:
            frames = [f.to_ndarray(format='rgb24') for f in container.decode(video=0)]
        return np.stack(frames)
    with Image.open(path) as picture:
        return np.stack([np.asarray(f.convert('RGB')) for f in ImageSequence.Iterator(picture)])


def duration(frame: Image.Image) -> float:
    frame.load()  # a webp knows the duration of a frame once it is decoded
    return frame.info['duration']


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9))


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('count', [1, 33])
@pytest.mark.parametrize(('suffix', 'bar'), [('.mp4', 30), ('.gif', 28), ('.webp', 30)])
def test_frames_survive(
    tmp_path: Path, suffix: str, bar: float, count: int, size: tuple[int, int]
) -> None:
    video = clip(count, *size)
    path = write_video(tmp_path / f'a{suffix}', video, fps=8)
    seen = decode(path)
    assert seen.shape[:3] == (count, *coded_size(suffix, *size))
    seen = seen[:, : size[0], : size[1]]
    assert psnr(seen, video) > bar, psnr(seen, video)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('count', [1, 33])
def test_pictures_are_equal(tmp_path: Path, count: int, size: tuple[int, int]) -> None:
    video = clip(count, *size)
    first = write_video(tmp_path / 'a.png', torch.from_numpy(video), recipe=recipe())
    paths = [first] if count == 1 else [picture_path(tmp_path / 'a', i) for i in range(count)]
    assert sorted(tmp_path.iterdir()) == paths
    assert np.array_equal(np.concatenate([decode(p) for p in paths]), video)
    assert all(read_recipe(p)['output']['frames'] == count for p in paths)


def test_rate_of_each_format(tmp_path: Path) -> None:
    video = clip(30, 32, 32)
    with av.open(str(write_video(tmp_path / 'a.mp4', video, fps=7.5))) as container:
        assert float(container.streams.video[0].average_rate) == 7.5
    for suffix in ('.gif', '.webp'):
        with Image.open(write_video(tmp_path / f'a{suffix}', video, fps=24)) as picture:
            total = sum(duration(f) for f in ImageSequence.Iterator(picture))
        assert abs(total - 1250) <= 20


def test_mp4_is_tagged_and_starts_fast(tmp_path: Path) -> None:
    path = write_video(tmp_path / 'a.mp4', clip(8, 64, 64))
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ('h264', 'yuv420p')
        assert (int(context.colorspace), int(context.color_range)) == (6, 1)
    content = path.read_bytes()
    assert content.index(b'moov') < content.index(b'mdat')


@pytest.mark.parametrize('suffix', ['.mp4', '.gif', '.webp', '.png'])
@pytest.mark.parametrize(
    'text',
    ['', 'ein Fisch — 金魚 🐟\n"\'\\\0 \u2028', 'x' * 254, 'é' * 200_000],
    ids=['empty', 'unicode', 'block', 'large'],
)
def test_recipe_survives(tmp_path: Path, suffix: str, text: str) -> None:
    given = recipe(prompt=text, seed=2**63, guidance_scale=0.1 + 0.2)
    path = write_video(tmp_path / f'a{suffix}', clip(1, 63, 65), fps=8, recipe=given)
    found = read_recipe(path)
    output = found.pop('output')
    assert found == given
    assert (output['frames'], output['height'], output['width']) == (1, 63, 65)
    assert (output.get('stored_width') == 66) == (suffix == '.mp4')
    assert decode(path).shape[0] == 1


@pytest.mark.parametrize('suffix', ['.mp4', '.gif', '.webp', '.png'])
def test_same_frames_same_bytes(tmp_path: Path, suffix: str) -> None:
    video = clip(5, 40, 48)
    first = write_video(tmp_path / f'a{suffix}', video, recipe=recipe(prompt='a'))
    second = write_video(tmp_path / f'b{suffix}', video, recipe=recipe(prompt='a'))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize('suffix', ['.mp4', '.png'])
def test_default_names_never_overwrite(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f'name{suffix}'
    names = [write_video(path, clip(2, 8, 8), overwrite=False).name for _ in range(3)]
    tail = '_0000' if suffix == '.png' else ''
    assert names == [f'name{tail}{suffix}', f'name-1{tail}{suffix}', f'name-2{tail}{suffix}']


def test_named_file_is_replaced(tmp_path: Path) -> None:
    path = write_video(tmp_path / 'a.gif', clip(9, 16, 16))
    assert write_video(path, clip(4, 16, 16)) == path
    assert len(decode(path)) == 4
    write_video(tmp_path / 'b.png', clip(9, 16, 16))
    write_video(tmp_path / 'b.png', clip(4, 16, 16))
    assert len(list(tmp_path.glob('b_*.png'))) == 4


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('a.mp5', r"'\.mp5'; the formats are .*Did you mean '\.mp4'"),
        ('a', 'a file without a suffix'),
        ('missing/a.mp4', "there is no folder '.*missing'"),
        ('x' * 250 + '.mp4', 'a file name may have 245 bytes'),
        ('folder.mp4', 'is a folder'),
    ],
)
def test_output_that_cannot_be(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / 'folder.mp4').mkdir()
    with pytest.raises(InputError, match=message):
        check_output(tmp_path / name)


@pytest.mark.parametrize(
    'frames',
    [
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 3), np.float32),
    ],
)
def test_frames_that_cannot_be(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(InputError, match=r'uint8 \[T, H, W, 3\]'):
        write_video(tmp_path / 'a.mp4', frames)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('suffix', 'fps'), [('.gif', 60), ('.mp4', 0), ('.mp4', float('nan'))])
def test_rates_that_cannot_be(tmp_path: Path, suffix: str, fps: float) -> None:
    with pytest.raises(InputError, match='frames a second'):
        write_video(tmp_path / f'a{suffix}', clip(2, 8, 8), fps=fps)


@pytest.mark.parametrize('suffix', ['.mp4', '.gif', '.webp', '.png'])
def test_parts_give_the_bytes_of_the_whole(tmp_path: Path, suffix: str) -> None:
    video = clip(33, 40, 48)
    whole = write_video(tmp_path / f'a{suffix}', video, recipe=recipe())
    parts = (part for part in np.split(video, [1, 5, 20]))
    again = write_video(tmp_path / f'b{suffix}', parts, recipe=recipe(), num_frames=33)
    assert whole.read_bytes() == again.read_bytes()
    assert len(list(tmp_path.iterdir())) == (66 if suffix == '.png' else 2)


def test_parts_that_do_not_fit_together(tmp_path: Path) -> None:
    frames = clip(4, 16, 16)
    with pytest.raises(InputError, match='4 frames were written, expected 5'):
        write_video(tmp_path / 'a.mp4', iter([frames]), num_frames=5)
    with pytest.raises(InputError, match='expected one size'):
        write_video(tmp_path / 'a.gif', iter([frames, frames[:, :8]]), num_frames=8)
    with pytest.raises(InputError, match='num_frames is missing'):
        write_video(tmp_path / 'a.png', iter([frames]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('suffix', ['.mp4', '.gif', '.webp', '.png'])
def test_failed_encoding_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    def interrupted() -> Iterator[np.ndarray]:
        yield clip(2, 8, 8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / f'a{suffix}', interrupted(), num_frames=4)
    assert not list(tmp_path.iterdir())


WRITE_FOR_EVER = """
import sys
import numpy as np
from mmvideo.media.writers import write_video
rng = np.random.default_rng(0)
frames = rng.integers(0, 255, (60, 256, 256, 3), dtype=np.uint8)
print('ready', flush=True)
while True:
    write_video(sys.argv[1], frames)
"""


@pytest.mark.parametrize('suffix', ['.mp4', '.webp'])
def test_kill_leaves_no_partial_file(tmp_path: Path, suffix: str) -> None:
    """Killed in the middle of the first write: nothing stands under the final name."""
    path = tmp_path / f'a{suffix}'
    child = subprocess.Popen(
        [sys.executable, '-c', WRITE_FOR_EVER, str(path)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdout.readline() == b'ready\n'
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob('.mmvideo-*')):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not path.exists() or len(decode(path)) == 60


def test_grid_matches_torchvision(tmp_path: Path) -> None:
    utils = pytest.importorskip('torchvision.utils')
    videos = torch.rand(5, 3, 2, 16, 20)
    path = save_videos_grid(videos * 2 - 1, tmp_path / 'g.png', rescale=True, n_rows=3)
    expected = [utils.make_grid(videos[:, :, t], nrow=3) for t in range(2)]
    seen = np.stack([decode(picture_path(tmp_path / 'g', t))[0] for t in range(2)])
    assert path == picture_path(tmp_path / 'g', 0)
    assert np.abs(seen - to_frames(torch.stack(expected, 1)).astype(int)).max() <= 1


def test_grid_of_one_is_the_video(tmp_path: Path) -> None:
    path = save_videos_grid(torch.zeros(1, 3, 1, 8, 8), tmp_path / 'g.png')
    assert decode(path).shape == (1, 8, 8, 3)


def test_the_folder_of_a_grid_is_made(tmp_path: Path) -> None:
    video = torch.zeros(1, 3, 1, 8, 8)
    assert save_videos_grid(video, tmp_path / 'deep' / 'er' / 'g.png').is_file()
    with pytest.raises(InputError, match='cannot write'):
        save_videos_grid(video, tmp_path / 'other' / 'g.avi')
    assert not (tmp_path / 'other').exists()
    (tmp_path / 'text').touch()
    with pytest.raises(InputError, match='the folder cannot be made'):
        save_videos_grid(video, tmp_path / 'text' / 'g.png')


def test_grey_becomes_rgb() -> None:
    assert to_frames(torch.rand(1, 2, 4, 4)).shape == (2, 4, 4, 3)


@pytest.mark.parametrize(
    'text', ['../../etc/passwd', 'a/b\\c\0d', '', '....', '-rf', '魚' * 300, '\ud800x', 'con: *?']
)
def test_safe_stems(text: str) -> None:
    stem = safe_stem(text)
    assert 0 < len(stem.encode()) <= 120
    assert Path(stem).name == stem and stem[0] not in '.-' and not set('/\\\0:*?') & set(stem)

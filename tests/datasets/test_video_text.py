"""Video files with captions: which frames an item has, what is said of them, and bad data."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmvideo.datasets.samplers import Draw
from mmvideo.datasets.video_text import VideoTextDataset
from mmvideo.errors import ConfigError, InputError
from mmvideo.media.clip_file import open_clip
from mmvideo.registry import DATASETS

FRAMES, RATE = 40, 10


def write_clip(path: Path, frames: int = FRAMES, rate: int = RATE, **options: Any) -> Path:
    """An mp4 whose frame i is grey, 5 * i + 20 bright, with a white left half in the upper part."""
    import av

    height, width = options.get('height', 48), options.get('width', 64)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        stream.options = {'g': str(options.get('keys', 8)), 'crf': '4', 'bf': '2'}
        for index in range(frames):
            picture = np.full((height, width, 3), 20 + 5 * index, np.uint8)
            picture[: height // 4, : width // 2] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def shown(video: torch.Tensor) -> list[int]:
    """Which of the file's frames [T, 3, H, W] are."""
    lower = video[:, :, video.shape[2] // 2 :].float().mean(dim=(1, 2, 3))
    return [round((level - 20) / 5) for level in lower.tolist()]


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('clips')
    write_clip(folder / 'a' / '1.mp4')
    write_clip(folder / 'b' / '2.mp4', keys=100, height=64, width=48)
    rows = [
        dict(page_dir='a', videoid='1', video='a/1.mp4', name='a grey, one', motion='12.5'),
        dict(page_dir='b', videoid='2', video='b/2.mp4', name='a tall one', motion='200'),
    ]
    with (folder / 'clips.csv').open('w', newline='') as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    lines = '\n'.join(json.dumps(dict(video=r['video'], caption=r['name'])) for r in rows)
    (folder / 'clips.jsonl').write_text(lines + '\n\n')
    return folder


def build(clips: Path, **changes: Any) -> VideoTextDataset:
    given = dict(root=str(clips), annotations=str(clips / 'clips.jsonl'), num_frames=4, size=32)
    return DATASETS.build(dict(type='VideoTextDataset', **{**given, **changes}))


@pytest.mark.parametrize('clip', ['a/1.mp4', 'b/2.mp4'])
def test_every_frame_is_found_from_any_place(root: Path, clip: str) -> None:
    """With key frames near and far, and frames that were written out of their order."""
    with open_clip(root / clip) as opened:
        facts = opened.facts()
        assert (facts.frames, facts.rate) == (FRAMES, RATE)
        for chosen in ([0, 1, 2], [17], [7, 8, 9], [5, 20, 39], [38, 39]):
            frames = opened.at([(index + 0.5) / RATE for index in chosen])
            assert frames.dtype == np.uint8
            assert shown(torch.from_numpy(frames).permute(0, 3, 1, 2)) == chosen
        late = torch.from_numpy(opened.at([3.9, 9.0])).permute(0, 3, 1, 2)
        assert shown(late) == [39, 39]


def test_an_item(root: Path) -> None:
    data = build(root)
    item = data[1]
    assert item['video'].shape == (4, 3, 32, 32) and item['video'].dtype == torch.uint8
    assert item['video'].is_contiguous()
    assert item['caption'] == 'a tall one' and item['index'] == 1 and item['fps'] == RATE
    first = shown(item['video'])
    assert first == list(range(first[0], first[0] + 4))
    assert torch.equal(item['video'], build(root)[1]['video'])
    assert torch.equal(data[-1]['video'], item['video']) and data[-1]['index'] == 1
    with pytest.raises(IndexError):
        data[2]


@pytest.mark.parametrize(
    ('asked', 'apart', 'rate'), [(dict(stride=3), 3, RATE / 3), (dict(fps=5), 2, 5), ({}, 1, RATE)]
)
def test_windows_by_stride_and_by_frames_a_second(
    root: Path, asked: dict, apart: int, rate: float
) -> None:
    data = build(root, num_frames=8, **asked)
    starts = set()
    for epoch in range(40):
        item = data[Draw(0, 7, epoch)]
        frames = shown(item['video'])
        assert np.diff(frames).tolist() == [apart] * 7
        assert item['fps'] == pytest.approx(rate)
        starts.add(frames[0])
    assert min(starts) >= 0 and max(starts) <= FRAMES - 1 - 7 * apart
    assert len(starts) > 10 or apart == 3


def test_a_window_of_the_whole_file_has_one_place(root: Path) -> None:
    assert shown(build(root, num_frames=FRAMES)[0]['video']) == list(range(FRAMES))
    message = r'1\.mp4 has 40 frames at 10 a second: a window of 41 .* needs 41'
    with pytest.raises(InputError, match=message):
        build(root, num_frames=FRAMES + 1)[0]
    with pytest.raises(InputError, match='needs 41'):
        build(root, num_frames=5, fps=1)[0]


def test_what_is_drawn_depends_on_seed_epoch_and_index(root: Path) -> None:
    data = build(root, num_frames=2)
    one = data[Draw(0, 3, 1)]['video']
    _ = data[1], data[Draw(1, 3, 1)]
    assert torch.equal(data[Draw(0, 3, 1)]['video'], one)
    others = [shown(data[Draw(0, 3, epoch)]['video'])[0] for epoch in range(12)]
    assert len(set(others)) > 4
    plain = {shown(build(root, num_frames=2, seed=seed)[0]['video'])[0] for seed in range(12)}
    assert len(plain) > 4


def test_pictures_cover_the_size_and_are_cut_around_their_middle(root: Path) -> None:
    wide, tall = build(root, size=(32, 32))[0]['video'], build(root, size=[24, 56])[1]['video']
    assert wide.shape[2:] == (32, 32) and tall.shape[2:] == (24, 56)
    # Of 48 x 64 px, scaled by 2/3, the left 5 px and the right ones are cut: white up to 16.3.
    assert wide[0, 0, 2, 15] > 230 and wide[0, 0, 2, 18] < 230
    # Of 64 x 48 px, scaled by 7/6, 25 px above and below are cut, all of the white ones.
    assert int(tall.float().amax() - tall.float().amin()) < 30


def test_flips(root: Path) -> None:
    never, always = build(root)[0]['video'], build(root, flip=1.0)[0]['video']
    assert torch.equal(always, never.flip(-1)) and not torch.equal(always, never)
    half = build(root, flip=0.5, num_frames=FRAMES)
    flipped = [bool(half[Draw(0, 0, e)]['video'][0, 0, 2, -3] > 230) for e in range(40)]
    assert 8 < sum(flipped) < 32


def test_webvids_columns(root: Path) -> None:
    data = build(
        root, annotations=str(root / 'clips.csv'), video='{page_dir}/{videoid}.mp4',
        caption='name', numbers=['motion'],
    )  # fmt: skip
    item = data[0]
    assert item['caption'] == 'a grey, one' and item['motion'] == 12.5
    assert torch.equal(item['video'], build(root)[0]['video'])
    batch = torch.utils.data.default_collate([data[0], data[1]])
    assert batch['motion'].tolist() == [12.5, 200.0] and batch['fps'].tolist() == [10.0, 10.0]


def test_a_folder_of_clips_with_captions_beside_them(tmp_path: Path, root: Path) -> None:
    for name in ('x/2.mp4', 'x/10.mp4', 'one.MP4'):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((root / 'a' / '1.mp4').read_bytes())
        path.with_suffix('.txt').write_text(f'  {path.stem} \n')
    (tmp_path / 'notes.md').write_text('not a clip')
    data = build(tmp_path, annotations=None)
    assert sorted(data[index]['caption'] for index in range(len(data))) == ['10', '2', 'one']
    (tmp_path / 'x/2.txt').unlink()
    with pytest.raises(ConfigError, match=r'2\.mp4 has no caption: expected 2\.txt'):
        build(tmp_path, annotations=None)


def test_a_training_on_cached_latents_sees_the_same_windows(root: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / 'vae')
    source = dict(
        type='VideoTextDataset', root=str(root), annotations=str(root / 'clips.jsonl'),
        num_frames=4, size=32,
    )  # fmt: skip
    cache = DATASETS.build(
        dict(
            type='CachedLatents', dataset=source, num_clips=2, first_frame=True,
            vae=dict(type='AutoencoderKL', from_pretrained=str(tmp_path / 'vae')),
            cache_dir=str(tmp_path / 'cache'),
        )
    )  # fmt: skip
    item, clip = cache[1], DATASETS.build(source)[1]
    assert torch.equal(item['image'], clip['video'][0])
    assert item['caption'] == clip['caption'] and item['fps'] == RATE


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(num_frames=0), 'num_frames=0'),
        (dict(size=4), r'size=\(4, 4\)'),
        (dict(size=[32]), 'size='),
        (dict(stride=0), 'stride=0'),
        (dict(fps=-1), 'fps=-1'),
        (dict(stride=1, fps=8), 'stride and fps'),
        (dict(flip=2), 'flip=2'),
        (dict(annotations='{root}/clisp.csv'), r"clisp\.csv does not exist\..*'clips\.csv'"),
        (dict(annotations='{root}/a/1.mp4'), r'is no \.csv or \.jsonl'),
        (dict(caption='captoin'), "line 1 has no 'captoin', only video, caption.*'caption'"),
        (dict(video='{dir}/{video}'), "line 1 has no 'dir'"),
        (dict(numbers=['caption']), "caption is 'a grey, one', expected a number"),
        (dict(annotations=None, numbers=['motion']), 'columns of annotations'),
        (dict(annotations=None, root='{root}/aa'), 'aa is no folder'),
        (dict(root='{root}/a'), r'row 1: .*1\.mp4 does not exist'),
        (dict(annotations='{root}/other.csv'), r'row 1: .*clips\.csv is no clip of a known format'),
    ],
)
def test_bad_arguments_are_named(root: Path, changes: dict, message: str) -> None:
    given = {k: v.replace('{root}', str(root)) if isinstance(v, str) else v
             for k, v in changes.items()}  # fmt: skip
    (root / 'other.csv').write_text('video,caption\nclips.csv,a table\n')
    with pytest.raises(ConfigError, match=message):
        build(root, **given)


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('t.csv', 'video,caption\n', 'has no rows'),
        ('t.csv', 'video,caption\na/1.mp4\n', "row 1 has no 'caption'"),
        ('t.jsonl', '{"video": "a/1.mp4"\n', 'line 1 is no JSON'),
        ('t.jsonl', '["a/1.mp4"]\n', 'line 1 is a list'),
        ('t.csv', b'video,caption\n\xff\xfe,x\n', 'cannot be read'),
    ],
)
def test_bad_tables_are_named(
    root: Path, tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=message):
        build(root, annotations=str(file))


# Opened as what it says it is, it would have other files read.
PLAYLIST = b'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n'


@pytest.mark.parametrize('content', [b'', b'no video at all' * 99, PLAYLIST, None])
def test_a_damaged_clip_is_named(root: Path, tmp_path: Path, content: bytes | None) -> None:
    whole = (root / 'a' / '1.mp4').read_bytes()
    (tmp_path / 'x.mp4').write_bytes(whole[: len(whole) // 3] if content is None else content)
    (tmp_path / 'x.txt').write_text('a clip')
    with pytest.raises(InputError, match=r'x\.mp4 is damaged, or no \.mp4 file'):
        build(tmp_path, annotations=None)[0]

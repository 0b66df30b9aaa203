"""Scores between frames, the cache of latents, and the tool that measures a data set."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mmvideo.datasets.affinity import AddAffinity, affinity_scores, measure_scores
from mmvideo.errors import InputError
from mmvideo.registry import DATASETS, TRANSFORMS

cv2 = pytest.importorskip('cv2')
ROOT = Path(__file__).parents[2]


def outline(value: np.ndarray) -> np.ndarray:
    height, width = value.shape
    k = 4 + round(math.sqrt(width * height) / 192)
    k = k if k % 2 else k + 1
    median = np.median(value)
    low, high = int(max(0, median * 2 / 3)), int(min(255, median * 4 / 3))
    return cv2.dilate(cv2.Canny(value, low, high), np.ones((k, k), np.uint8))


def pair_score(a: np.ndarray, b: np.ndarray) -> float:
    """The definition for one pair of frames, a channel and a row at a time."""
    height, width = a.shape[:2]
    maps = []
    for frame in (a, b):
        h, s, v = cv2.split(cv2.cvtColor(frame.astype(np.float32), cv2.COLOR_RGB2HSV))
        maps.append([h, s, v, outline(v.astype(np.uint8)).astype(np.float32)])
    total = 0.0
    for first, second in zip(*maps, strict=True):
        for row in range(height):
            total += float(np.abs(first[row].astype(np.float64) - second[row]).sum())
    return total / (4 * height * width)


def random_clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, so that edges are few and shift."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (frames, 6, 8, 3), dtype=np.uint8)
    return np.stack([cv2.resize(c, (width, height), interpolation=cv2.INTER_CUBIC) for c in coarse])


@pytest.mark.parametrize(('height', 'width'), [(64, 64), (48, 80), (33, 17), (256, 256)])
def test_scores_equal_the_definition(height: int, width: int) -> None:
    video = random_clip(4, height, width)
    scores = affinity_scores(video)
    for i in range(4):
        for c in range(4):
            assert scores[i, c] == pytest.approx(pair_score(video[i], video[c]), rel=1e-6, abs=1e-5)
    assert scores.dtype == np.float32
    assert np.array_equal(scores, scores.T)
    assert not np.diagonal(scores).any()


def test_scores_of_sprites_equal_the_definition_and_grow_with_distance() -> None:
    dataset = DATASETS.build(dict(type='SpriteWorld', length=8, num_frames=8))
    video = dataset[1]['video'].permute(0, 2, 3, 1).numpy()
    scores = affinity_scores(video)
    assert scores[0, 5] == pytest.approx(pair_score(video[0], video[5]), abs=1e-5)
    moving = [affinity_scores(dataset[i]['video'].permute(0, 2, 3, 1).numpy()) for i in range(8)]
    near, far = (np.mean([s[0, d] for s in moving]) for d in (1, 7))
    assert far > 1.5 * near > 0


def test_an_appearing_edge_counts_like_a_vanishing_one() -> None:
    video = np.full((2, 64, 64, 3), 90, np.uint8)
    video[1, 20:40, 20:40] = 200
    scores = affinity_scores(video)
    assert scores[0, 1] == scores[1, 0] == pytest.approx(pair_score(video[1], video[0]), abs=1e-5)
    assert scores[0, 1] > 110 * 400 / (4 * 64 * 64) + 5  # more than the change of value


@pytest.mark.parametrize(
    'video',
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_wrong_frames(video: np.ndarray) -> None:
    with pytest.raises(InputError, match='affinity needs'):
        affinity_scores(video)


def test_transform() -> None:
    video = torch.from_numpy(random_clip(3, 32, 32)).permute(0, 3, 1, 2)
    sample = {'video': video, 'caption': 'a'}
    result = TRANSFORMS.build(dict(type='AddAffinity'))(sample)
    assert sorted(result) == ['affinity_scores', 'caption', 'video']
    assert sorted(sample) == ['caption', 'video']
    assert torch.equal(
        result['affinity_scores'], torch.from_numpy(affinity_scores(random_clip(3, 32, 32)))
    )
    with pytest.raises(InputError, match="needs 'video'"):
        AddAffinity()({'caption': 'a'})


class Clips(torch.utils.data.Dataset):
    """Random clips, of which one may have another size."""

    def __init__(self, count: int, odd: int = -1) -> None:
        self.count, self.odd = count, odd

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        size = 40 if index == self.odd else 32
        return {'video': torch.from_numpy(random_clip(5, size, 32, index)).permute(0, 3, 1, 2)}


def test_measured_range_covers_every_pair_of_its_distance() -> None:
    clips = Clips(3)
    found = measure_scores(clips, 3)
    assert (found.num_frames, found.size) == (5, (32, 32))
    assert found.minimum[0] == found.maximum[0] == 0
    scores = [affinity_scores(random_clip(5, 32, 32, index)) for index in range(3)]
    for distance in range(1, 5):
        pairs = [s[i, i + distance] for s in scores for i in range(5 - distance)]
        assert found.minimum[distance] == min(pairs)
        assert found.maximum[distance] == max(pairs)


def test_a_percentile_leaves_out_the_few_largest_scores() -> None:
    calm = random_clip(4, 32, 32, 0)
    calm[1:] = calm[0]
    clips = [torch.from_numpy(calm).permute(0, 3, 1, 2)] * 19
    clips.append(torch.from_numpy(random_clip(4, 32, 32, 1)).permute(0, 3, 1, 2))
    dataset = [{'video': clip} for clip in clips]
    assert all(score > 10 for score in measure_scores(dataset, 20).maximum[1:])
    assert measure_scores(dataset, 20, percentile=90).maximum == (0, 0, 0, 0)
    with pytest.raises(InputError, match='percentile=0'):
        measure_scores(dataset, 20, percentile=0)


def test_measured_clips_are_spread_over_the_data_set() -> None:
    seen: list[int] = []

    class Watched(Clips):
        def __getitem__(self, index: int) -> dict:
            seen.append(index)
            return super().__getitem__(index)

    measure_scores(Watched(100), 4)
    assert seen == [0, 25, 50, 75]


def test_clips_of_several_sizes_are_refused() -> None:
    with pytest.raises(InputError, match=r'clip 1 is .*40'):
        measure_scores(Clips(3, odd=1), 3)
    with pytest.raises(InputError, match='clips=4'):
        measure_scores(Clips(3), 4)


CONFIG = """
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    dataset=dict(type='SpriteWorld', length={length}, num_frames=6, size=48),
    sampler=dict(type='ResumableSampler'),
)
"""


def tool(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / 'tools/affinity_stats.py'), *arguments],
        capture_output=True,
        text=True,
        env=_environment(),
        timeout=120,
    )


def _environment() -> dict[str, str]:
    return {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / 'clips.py'
    path.write_text(CONFIG.format(length=50))
    return path


def test_tool_writes_what_the_condition_reads(config: Path, tmp_path) -> None:
    from mmvideo.models.conditioning.pia import PIACondition

    out = tmp_path / 'statistics.json'
    result = tool(str(config), '--clips', '5', '--percentile', '90', '--out', str(out))
    assert result.returncode == 0, result.stderr
    content = json.loads(out.read_text())
    assert content['dataset'] == 'SpriteWorld'
    assert content['size'] == [48, 48]
    assert (content['num_frames'], content['num_clips'], content['stride']) == (6, 5, 1)
    assert len(content['maximum']) == 6 and content['percentile'] == 90
    assert f'{content["maximum"][5]:.4f}' in result.stdout
    dataset = DATASETS.build(dict(type='SpriteWorld', length=50, num_frames=6, size=48))
    assert measure_scores(dataset, 5, percentile=90).maximum == tuple(content['maximum'])
    condition = PIACondition(statistics=out)
    scores = torch.from_numpy(affinity_scores(dataset[0]['video'].permute(0, 2, 3, 1).numpy()))
    affinity = condition.training_affinity(scores[None], torch.tensor([2]))
    assert affinity[0, 2] == 1
    assert (affinity >= 0.2 - 1e-6).all()


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--clips', '0'], 'at least 1'),
        (['--percentile', '101'], '100 at most'),
        (['--out', 'statistics.txt'], '.json'),
        (['--out', 'no/such/folder/statistics.json'], 'no folder'),
    ],
)
def test_tool_refuses_bad_arguments(config: Path, arguments: list[str], words: str) -> None:
    result = tool(str(config), *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert 'Traceback' not in result.stderr


def test_tool_refuses_a_missing_config(tmp_path) -> None:
    result = tool(str(tmp_path / 'none.py'))
    assert result.returncode == 2
    assert 'none.py' in result.stderr
    assert 'Traceback' not in result.stderr


def test_tool_help_has_examples() -> None:
    result = tool('--help')
    assert result.returncode == 0
    assert 'python tools/affinity_stats.py configs/' in result.stdout


@pytest.mark.skipif(os.name != 'posix', reason='signals')
def heed_interrupts() -> None:
    # A test run in a shell's background inherits that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupted_tool_leaves_nothing(tmp_path) -> None:
    config = tmp_path / 'clips.py'
    config.write_text(CONFIG.format(length=1_000_000))
    out = tmp_path / 'out'
    out.mkdir()
    process = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / 'tools/affinity_stats.py'), str(config)),
            *('--clips', '1000000', '--out', str(out / 'statistics.json')),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
        preexec_fn=heed_interrupts,
    )
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert 'interrupted' in stderr
    assert list(out.iterdir()) == []

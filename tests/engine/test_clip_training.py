"""Trainings on video files: the real tool on real mp4 files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmvideo.checkpoints.commit import read_commit
from mmvideo.media.writers import write_video

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
ITERATIONS = {'tiny_train': 'iter_3', 'tiny_svd_train': 'iter_2'}


@pytest.fixture(scope='module')
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('clips')
    random = np.random.default_rng(0)
    for name in ('one', 'two', 'three'):
        frames = random.integers(0, 255, (9, 6, 8, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
        write_video(folder / f'{name}.mp4', frames, fps=8)
        (folder / f'{name}.txt').write_text('fish')
    return folder


def train(folder: Path, clips: Path, tiny: str, workers: int = 0) -> subprocess.CompletedProcess:
    config = folder / f'{tiny}_{workers}.py'
    config.write_text(
        f"_base_ = '{(HERE / tiny).as_posix()}.py'\n"
        f'train_dataloader = dict(num_workers={workers}, dataset=dict(\n'
        f"    _delete_=True, type='VideoTextDataset', root={str(clips)!r}, num_frames=3,\n"
        '    fps=4, size=32))\n'
    )
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(config)]
    return subprocess.run(
        [*command, '--work-dir', str(folder / config.stem)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize('tiny', ['tiny_train', 'tiny_svd_train'])
def test_a_training_on_clips_does_not_depend_on_its_workers(
    tmp_path: Path, clips: Path, tiny: str
) -> None:
    states = []
    for workers in (0, 2):
        done = train(tmp_path, clips, tiny, workers)
        assert done.returncode == 0, done.stderr[-3000:]
        states.append(read_commit(tmp_path / f'{tiny}_{workers}' / ITERATIONS[tiny])[0]['model'])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_damaged_clip_ends_a_training_with_its_name(tmp_path: Path, clips: Path) -> None:
    data = tmp_path / 'data'
    data.mkdir()
    (data / 'bad.mp4').write_bytes((clips / 'one.mp4').read_bytes()[:500])
    (data / 'bad.txt').write_text('fish')
    done = train(tmp_path, data, 'tiny_train')
    assert done.returncode not in (0, 130)
    assert 'bad.mp4 is damaged' in done.stderr

"""Stable Video Diffusion through the runner: raw clips in, weights for the next config out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from mmvideo.apis.train import train
from mmvideo.checkpoints.files import read_tensors

ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).with_name('tiny_svd_train.py')
TEMPORAL = ('temporal_', 'time_pos_embed', 'time_mixer')


def test_temporal_layers_are_trained_and_the_whole_denoiser_exported(tmp_path: Path) -> None:
    train(CONFIG, work_dir=str(tmp_path))
    check(tmp_path)


def check(folder: Path) -> None:
    trained = read_tensors(folder / 'iter_2' / 'model.safetensors')
    assert len(trained) > 20
    assert all(any(part in name for part in TEMPORAL) for name in trained)
    export = folder / 'export' / 'unet'
    whole = read_tensors(export / 'diffusion_pytorch_model.safetensors')
    assert 'conv_in.weight' in whole and all(value.isfinite().all() for value in whole.values())
    assert {name.removeprefix('unet.') for name in trained} < set(whole)
    config = json.loads((export / 'config.json').read_text())
    assert config['_class_name'] == 'UNetSpatioTemporalConditionModel'
    assert (folder / 'export' / 'scheduler' / 'scheduler_config.json').is_file()


def test_two_processes_equal_one_with_their_batch(tmp_path: Path) -> None:
    """The whole denoiser, without a search for parameters that get no gradient: there are none.

    DistributedDataParallel refuses the second step where the first left a gradient out.
    """
    script = Path(__file__).with_name('fixed_noise_train.py')
    shared = ['--cfg-options', 'model.trainable=["^unet"]', 'model.condition_dropout=0.0',
              'optim_wrapper.optimizer.eps=0.001', 'optim_wrapper.optimizer.lr=0.01',
              'train_cfg.max_iters=3']  # fmt: skip
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    environment = {**os.environ, 'PYTHONPATH': path, 'CUDA_VISIBLE_DEVICES': ''}
    for name, batch, command in (
        ('one', 4, [str(script), str(CONFIG)]),
        ('two', 2, [*launcher, str(script), str(CONFIG), '--launcher', 'pytorch']),
    ):
        more = [f'train_dataloader.batch_size={batch}', '--work-dir', name]
        done = subprocess.run(
            [sys.executable, *command, *shared, *more],
            cwd=tmp_path,
            env={**environment, 'HF_HUB_OFFLINE': '1'},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_tensors(tmp_path / name / 'iter_3' / 'model.safetensors')
                for name in ('one', 'two'))  # fmt: skip
    assert set(one) == set(two) and len(one) > 60
    assert max(float((one[key] - two[key]).abs().max()) for key in one) <= 1e-6

"""Stable Video Diffusion through the runner: raw clips in, weights for the next config out."""

from __future__ import annotations

import json
from pathlib import Path

from mmvideo.apis.train import train
from mmvideo.checkpoints.files import read_tensors

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

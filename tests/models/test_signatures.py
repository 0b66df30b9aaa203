"""What mistakes cost: the keys of borrowed classes come from their source, not from imports."""

from __future__ import annotations

import subprocess
import sys

import diffusers
import pytest
import torch
import transformers

from mmvideo.errors import ConfigError
from mmvideo.models.borrowed import SCHEDULER_NAMES
from mmvideo.models.borrowed.signatures import constructor_keys
from mmvideo.models.borrowed.source import keys_of
from mmvideo.registry import OPTIMIZERS


@pytest.mark.parametrize('name', ['AutoencoderKL', *SCHEDULER_NAMES])
def test_keys_are_those_of_the_constructor(name: str) -> None:
    if name == 'LMSDiscreteScheduler':
        pytest.importorskip('scipy')
    assert set(constructor_keys('diffusers', name)) == set(keys_of(getattr(diffusers, name)))


@pytest.mark.parametrize('name', ['CLIPTextConfig', 'CLIPVisionConfig'])
def test_keys_of_a_config_with_what_it_inherits(name: str) -> None:
    constructor = getattr(transformers, name).__init__
    assert set(constructor_keys('transformers', name)) == set(keys_of(constructor))


def test_a_class_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match='AutoencoderXY is not in the diffusers'):
        constructor_keys('diffusers', 'AutoencoderXY')


def test_a_config_is_checked_without_the_slow_libraries() -> None:
    code = (
        'import sys\n'
        'from mmvideo.config import load_config\n'
        "load_config('configs/sprites/train_pia_sprites.py')\n"
        'import mmvideo.engine\n'
        "slow = [n for n in ('transformers', 'diffusers', 'peft') if n in sys.modules]\n"
        'assert not slow, slow\n'
        'import transformers\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_optimizer_of_transformers_is_registered_all_the_same() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    settings = dict(type='Adafactor', params=[parameter], lr=0.1, relative_step=False)
    built = OPTIMIZERS.build(settings)
    assert type(built).__name__ == 'Adafactor' and built.param_groups[0]['lr'] == 0.1
    parameter.sum().backward()
    built.step()
    assert not torch.equal(parameter, torch.ones(2, 2))

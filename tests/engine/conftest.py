"""Trainings of a kilobyte's size, in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope

from mmvideo.config import load_config
from mmvideo.engine import VideoRunner

CONFIG = Path(__file__).with_name('tiny_train.py')
_numbers = itertools.count()


@pytest.fixture
def runner(tmp_path: Path) -> Callable[..., VideoRunner]:
    """A builder of runners of ``tiny_train.py``; options are dotted keys."""

    def make(**options: Any) -> VideoRunner:
        dotted = {key.replace('__', '.'): value for key, value in options.items()}
        cfg = load_config(CONFIG, dotted)
        number = next(_numbers)
        cfg.work_dir = str(tmp_path / f'run{number}')
        cfg.experiment_name = f'engine-test-{number}'
        cfg.log_level = 'ERROR'
        built = VideoRunner.from_cfg(cfg)
        move_off_zero(built.model)
        return built

    return make


def move_off_zero(model: torch.nn.Module) -> None:
    """New motion modules give zero, so at first only their last layer would have a gradient."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


@pytest.fixture
def trained() -> Callable[[Any], dict[str, torch.Tensor]]:
    """A copy of the trained parameters of a runner."""

    def copy(runner: Any) -> dict[str, torch.Tensor]:
        named = runner.model.named_parameters()
        return {n: p.detach().clone() for n, p in named if p.requires_grad}

    return copy


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise and timesteps that depend on a sample alone, not on its place in a batch."""
    fix_noise(monkeypatch.setattr)


def fix_noise(setattr_: Callable) -> None:
    """See ``same_noise``; ``setattr_`` as that of pytest's monkeypatch."""
    posterior = 'diffusers.models.autoencoders.vae.DiagonalGaussianDistribution.sample'
    setattr_(posterior, lambda self, generator=None: self.mode())
    setattr_('torch.randn_like', lambda like, **_: torch.sin(like * 50))
    setattr_(
        'torch.randint', lambda low, high, size, **_: torch.full(tuple(size), (low + high) // 3)
    )
    setattr_(
        'mmvideo.editors.picture_training.draw_sigmas',
        lambda count, mean, std: torch.full((count,), mean).exp(),
    )


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    yield
    DefaultScope._instance_dict.clear()

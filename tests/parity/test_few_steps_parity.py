"""Samplers of few steps end to end against diffusers' AnimateDiff pipeline."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


def _pipelines() -> Any:
    """The module of the pipelines' own test, which builds folders and compares."""
    path = Path(__file__).with_name('test_pipeline_parity.py')
    spec = importlib.util.spec_from_file_location('pipeline_parity_for_few_steps', path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


parts = _pipelines()
pairs = parts.pairs  # a fixture
PROMPTS, FRAMES = parts.PROMPTS, parts.FRAMES
LINEAR = {key: value for key, value in parts.BETAS.items() if key != 'steps_offset'}
parts.SAMPLERS.update(
    LCMScheduler=LINEAR,
    TCDScheduler=LINEAR,
    EulerDiscreteScheduler={**LINEAR, 'timestep_spacing': 'trailing'},
    DDIMScheduler={**LINEAR, 'timestep_spacing': 'trailing', 'clip_sample': False,
                   'set_alpha_to_one': False},
)  # fmt: skip
FEW = ('LCMScheduler', 'TCDScheduler', 'EulerDiscreteScheduler', 'DDIMScheduler')


@pytest.mark.parametrize('guidance', [1.0, 2.0])
@pytest.mark.parametrize('sampler', FEW)
def test_few_steps(pairs: Callable, sampler: str, guidance: float) -> None:
    """The consistency samplers draw noise in each step, from each sample's own generator."""
    pair = pairs('v2')
    editor = pair.use(sampler)
    shared = dict(prompt=PROMPTS, guidance_scale=guidance)
    shared['eta'] = 0.3 if sampler == 'TCDScheduler' else 0.0
    generators = [[torch.Generator().manual_seed(seed) for seed in (4, 5)] for _ in range(2)]
    parts.compare(
        editor,
        pair.pipeline,
        dict(shared, generator=generators[0], video_length=FRAMES),
        dict(shared, generator=generators[1], num_frames=FRAMES),
        steps=4,
    )


def test_trailing_steps_begin_at_the_end_of_training(pairs: Callable) -> None:
    for sampler in ('EulerDiscreteScheduler', 'DDIMScheduler'):
        editor = pairs('v2').use(sampler)
        editor.scheduler.set_timesteps(4)
        assert [int(t) for t in editor.scheduler.timesteps] == [999, 749, 499, 249]

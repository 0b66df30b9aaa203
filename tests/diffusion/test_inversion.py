"""DDIM backwards: against diffusers' inverse scheduler, and there and back."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from mmvideo.diffusion.inversion import invert, split
from mmvideo.diffusion.objective import PREDICTION_TYPES, add_noise, prediction_target
from mmvideo.diffusion.sampling import sample

BETAS = dict(beta_start=0.00085, beta_end=0.012, clip_sample=False)
SETTINGS = [
    dict(beta_schedule='linear', steps_offset=1, set_alpha_to_one=False),
    dict(beta_schedule='scaled_linear', timestep_spacing='trailing'),
]


def answer(x: Tensor, timestep: Tensor) -> Tensor:
    """A stand-in for a denoiser: smooth in what it sees and when."""
    return torch.tanh(0.7 * x.roll(1, -1)) * (1 + float(timestep) / 1000)


def clean(scale: float = 0.5) -> Tensor:
    return scale * torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('settings', SETTINGS)
@pytest.mark.parametrize('kind', PREDICTION_TYPES)
def test_as_the_inverse_scheduler_of_diffusers(settings: dict, kind: str) -> None:
    settings = dict(settings, prediction_type=kind, **BETAS)
    # A prediction of the clean clip says nothing of the noise in a clip that has none.
    if kind == 'sample':
        settings['set_alpha_to_one'] = False
    scheduler, inverse = DDIMScheduler(**settings), DDIMInverseScheduler(**settings)
    scheduler.set_timesteps(20)
    inverse.set_timesteps(20)
    rising = scheduler.timesteps.flip(0)
    assert torch.equal(rising, inverse.timesteps)
    expected = clean()
    for timestep in inverse.timesteps:
        expected = inverse.step(answer(expected, timestep), timestep, expected).prev_sample
    steps: list[tuple] = []
    found = invert(answer, clean(), scheduler, rising, lambda *state: steps.append(state[:2]))
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert steps == [(i + 1, 20) for i in range(20)]


def test_there_and_back() -> None:
    """The more steps, the nearer; one step that sees the same answer is exact."""
    errors = []
    for count in (10, 100, 500):
        scheduler = DDIMScheduler(**SETTINGS[0], **BETAS)
        scheduler.set_timesteps(count)
        noisy = invert(answer, clean(), scheduler, scheduler.timesteps.flip(0))
        back = sample(answer, scheduler, noisy, scheduler.timesteps, [])
        errors.append(float((back - clean()).abs().max()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    scheduler = DDIMScheduler(**SETTINGS[0], **BETAS)
    scheduler.set_timesteps(50)
    constant = torch.randn(2, 4, 3, 4, 4)
    noisy = invert(lambda x, t: constant, clean(), scheduler, scheduler.timesteps.flip(0))
    back = sample(lambda x, t: constant, scheduler, noisy, scheduler.timesteps, [])
    assert float((back - clean()).abs().max()) <= 1e-4


@pytest.mark.parametrize('kind', PREDICTION_TYPES)
def test_a_prediction_is_split_into_what_it_was_made_of(kind: str) -> None:
    origin, noise = clean(1.0), torch.randn(2, 4, 3, 4, 4)
    level = torch.full((2,), 0.3)
    x = add_noise(origin, noise, level)
    found = split(kind, prediction_target(kind, origin, noise, level), x, 0.3)
    for one, other in zip(found, (origin, noise), strict=True):
        assert float((one - other).abs().max()) <= 1e-5

"""EDM's preconditioning against its closed forms, worked out in float64."""

from __future__ import annotations

import math

import torch
from diffusers import EulerDiscreteScheduler

from mmvideo.diffusion.edm import (
    denoised,
    draw_sigmas,
    loss_weights,
    noised,
    output_target,
    precondition,
)
from mmvideo.diffusion.objective import prediction_target

SIGMAS = torch.tensor([0.002, 0.3, 1.0, 20.0, 700.0], dtype=torch.float64)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 4, 3, 8, 8, generator=generator, dtype=torch.float64).unbind(0)


def test_the_factors_are_those_of_the_paper() -> None:
    factors = precondition(SIGMAS)
    for i, s in enumerate(SIGMAS.tolist()):
        assert math.isclose(factors.skip[i], 1 / (s * s + 1))
        assert math.isclose(factors.out[i], -s / math.sqrt(s * s + 1))
        assert math.isclose(factors.scale[i], 1 / math.sqrt(s * s + 1))
        assert math.isclose(factors.time[i], 0.25 * math.log(s))


def test_a_network_that_meets_its_target_denoises() -> None:
    clean, noise = pair()
    target = output_target(clean, noise, SIGMAS)
    found = denoised(target, noised(clean, noise, SIGMAS), SIGMAS)
    assert torch.allclose(found, clean, atol=1e-9)


def test_the_plain_error_is_the_weighted_error_of_the_denoised_clip() -> None:
    clean, noise = pair()
    output = torch.sin(clean * 3)
    plain = (output - output_target(clean, noise, SIGMAS)).square().flatten(1).mean(1)
    error = denoised(output, noised(clean, noise, SIGMAS), SIGMAS) - clean
    weighted = loss_weights(SIGMAS) * error.square().flatten(1).mean(1)
    assert torch.allclose(plain, weighted, rtol=1e-6)


def test_the_target_is_the_v_prediction() -> None:
    clean, noise = pair()
    expected = prediction_target('v_prediction', clean, noise, 1 / (SIGMAS.square() + 1))
    assert torch.allclose(output_target(clean, noise, SIGMAS), expected, atol=1e-9)


def test_float32_keeps_small_levels() -> None:
    clean, noise = (x.float() for x in pair())
    exact = output_target(clean.double(), noise.double(), SIGMAS)
    assert (output_target(clean, noise, SIGMAS.float()) - exact).abs().max() < 1e-5


def test_the_sampler_denoises_with_the_same_factors() -> None:
    """diffusers' Euler step, from one level to 0, is what ``denoised`` says."""
    scheduler = EulerDiscreteScheduler(
        prediction_type='v_prediction', timestep_type='continuous', timestep_spacing='leading'
    )
    scheduler.set_timesteps(sigmas=[20.0, 0.0])
    clean, noise = (x[:1].float() for x in pair())
    sigma = torch.tensor([20.0])
    noisy, output = noised(clean, noise, sigma), torch.sin(clean)
    factors = precondition(sigma)
    assert torch.allclose(scheduler.timesteps, factors.time)
    scaled = scheduler.scale_model_input(noisy, scheduler.timesteps[0])
    assert torch.allclose(scaled, noisy * factors.scale)
    found = scheduler.step(output, scheduler.timesteps[0], noisy).prev_sample
    assert torch.allclose(found, denoised(output, noisy, sigma), atol=1e-5)


def test_levels_are_log_normal() -> None:
    torch.manual_seed(0)
    logs = draw_sigmas(20_000, 0.7, 1.6).log()
    assert abs(float(logs.mean()) - 0.7) < 0.05 and abs(float(logs.std()) - 1.6) < 0.05

"""The sampling loop: a scheduler, a denoise function, and nothing about models.

A scheduler is any object with diffusers' interface (``timesteps``, ``scale_model_input``,
``step``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Callback = Callable[[int, int, torch.Tensor], None]
# (index, steps, timestep, latents) -> the latents to go on with, or None to end here
AfterStep = Callable[[int, int, torch.Tensor, torch.Tensor], torch.Tensor | None]


def guide(prediction: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans 2022) over stacked halves.

    Args:
        prediction: [2N, ...], unconditional half first.
        scale: guidance scale w of ``u + w (c - u)``, a number or what broadcasts over [N, ...].

    Returns:
        [N, ...].
    """
    unconditional, conditional = prediction.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def sample(
    denoise: Denoise,
    scheduler: Any,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    generators: Sequence[torch.Generator],
    eta: float = 0.0,
    callback: Callback | None = None,
    after: AfterStep | None = None,
) -> torch.Tensor:
    """Run ``scheduler`` over ``timesteps``.

    Args:
        denoise: ``(scaled latents, timestep) -> prediction``, guidance included.
        scheduler: with its timesteps set.
        latents: start, already at the noise level of the first timestep.
        timesteps: a suffix of the scheduler's timesteps.
        generators: one a sample, on the CPU, for schedulers that draw noise in a step.
        eta: DDIM's eta.
        callback: called as ``(steps done, steps, latents)``.
        after: called after that, gives the latents of the next step, or None for no further one.
    """
    options = step_options(scheduler, list(generators), eta)
    for index, timestep in enumerate(timesteps):
        prediction = denoise(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(prediction, timestep, latents, **options).prev_sample
        if callback is not None:
            callback(index + 1, len(timesteps), latents)
        if after is not None:
            changed = after(index, len(timesteps), timestep, latents)
            if changed is None:
                break
            latents = changed
    return latents


def step_options(scheduler: Any, generators: list[torch.Generator], eta: float) -> dict[str, Any]:
    """The optional arguments that this scheduler's ``step`` knows."""
    known = inspect.signature(scheduler.step).parameters
    options = dict(eta=eta, generator=generators)
    return {name: value for name, value in options.items() if name in known}

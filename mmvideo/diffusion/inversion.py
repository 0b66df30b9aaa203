"""DDIM backwards: the noise that a clip would have come from (Song et al. 2021, section 4.3).

The deterministic sampler is an equation that can be followed both ways. Sampling from the noise
found gives the clip again, nearly, as each step back takes the denoiser's answer for a state that
is not reached yet; another prompt changes what it says and keeps the rest.

N samples, C channels, T frames, H W latent size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

METHODS = ('ddim',)


@dataclass(frozen=True)
class Inversion:
    """Settings.

    Attributes:
        type: ``'ddim'``.
        num_inference_steps: of the way back; None is as many as sampling has. More are nearer to
            the equation.
        prompt: what the clip shows, one for all samples; None is each sample's own prompt.
    """

    type: str = 'ddim'
    num_inference_steps: int | None = None
    prompt: Any = None


def invert(
    denoise: Callable[[Tensor, Tensor], Tensor],
    clean: Tensor,
    scheduler: Any,
    timesteps: Tensor,
    callback: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """The noisy clip from which DDIM without noise of its own arrives at ``clean``.

    Args:
        denoise: ``(latents, timestep) -> prediction``.
        clean: [N, C, T, H, W].
        scheduler: with diffusers' ``alphas_cumprod``, ``final_alpha_cumprod`` and
            ``config.prediction_type``.
        timesteps: rising; the last is where sampling begins.
        callback: called as ``(steps done, steps, latents)``.

    Returns:
        [N, C, T, H, W] at the last timestep.
    """
    kind, x = scheduler.config.prediction_type, clean
    before = float(scheduler.final_alpha_cumprod)
    for index, timestep in enumerate(timesteps):
        origin, noise = split(kind, denoise(x, timestep), x, before)
        after = float(scheduler.alphas_cumprod[int(timestep)])
        x = after**0.5 * origin + (1 - after) ** 0.5 * noise
        before = after
        if callback is not None:
            callback(index + 1, len(timesteps), x)
    return x


def split(kind: str, prediction: Tensor, x: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor]:
    """The clean clip and the noise that a prediction sees in ``x = a x_0 + s e``.

    Args:
        kind: one of ``mmvideo.diffusion.objective.PREDICTION_TYPES``.
        prediction: of the denoiser.
        x: noisy.
        alpha_bar: ``a`` squared, above 0.
    """
    a, s = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    if kind == 'epsilon':
        return (x - s * prediction) / a, prediction
    if kind == 'v_prediction':
        return a * x - s * prediction, a * prediction + s * x
    assert kind == 'sample', kind
    return prediction, (x - a * prediction) / s

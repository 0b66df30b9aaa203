"""Diffusion by noise level: EDM's preconditioning (Karras et al. 2022) as SVD has it.

``x = x_0 + s e`` is noised without scaling. The network F gives, from ``c_in x`` at the time
``c_noise``, the clean clip as ``D = c_skip x + c_out F`` (EDM, equation 7). SVD's data have unit
variance and its ``c_out`` is negative, which makes F the v-prediction of Salimans and Ho 2022 for
``a = 1 / sqrt(s^2 + 1)`` (Blattmann et al. 2023, appendix D).

Tensors have any shape [N, ...]; ``sigma``, the noise level s, has shape [N].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmvideo.diffusion.objective import per_sample


class Preconditioning(NamedTuple):
    """Factors by noise level, [N] each.

    Attributes:
        skip: of the noisy clip in the denoised one.
        out: of the network's output in it.
        scale: of the noisy clip in the network's input.
        time: what the network is told of the noise level.
    """

    skip: Tensor
    out: Tensor
    scale: Tensor
    time: Tensor


def precondition(sigma: Tensor) -> Preconditioning:
    """``c_skip``, ``c_out``, ``c_in`` and ``c_noise`` for levels above 0."""
    total = sigma.square() + 1
    return Preconditioning(1 / total, -sigma * total.rsqrt(), total.rsqrt(), sigma.log() / 4)


def noised(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """``x_0 + s e``."""
    return clean + per_sample(sigma, clean) * noise


def denoised(output: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """D: the clean clip that the network's output stands for."""
    factors = precondition(sigma)
    return per_sample(factors.skip, noisy) * noisy + per_sample(factors.out, noisy) * output


def loss_weights(sigma: Tensor) -> Tensor:
    """``(s^2 + 1) / s^2``, [N]: the weight of ``|D - x_0|^2`` that makes all levels count alike."""
    return 1 + sigma.square().reciprocal()


def output_target(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """What the network's output should be: ``(e - s x_0) / sqrt(s^2 + 1)``.

    Its plain squared error is ``loss_weights`` times that of the denoised clip; here nothing large
    is subtracted from its like, which at small levels would leave rounding errors alone.
    """
    level = per_sample(sigma, clean)
    return (noise - level * clean) * (level.square() + 1).rsqrt()


def draw_sigmas(count: int, mean: float, std: float) -> Tensor:
    """Noise levels [N] whose logarithm is normal, from torch's global CPU generator.

    Args:
        count: N.
        mean: of the logarithm.
        std: of the logarithm.
    """
    return (mean + std * torch.randn(count)).exp()

"""What a denoiser is trained to predict, and how its errors are weighted.

Notation of Salimans and Ho 2022: ``x_t = a x_0 + s e`` with ``a^2 + s^2 = 1`` and
``a^2 = alpha_bar_t``. Tensors have any shape [N, ...]; ``alpha_bar`` has shape [N].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

PREDICTION_TYPES = ('epsilon', 'v_prediction', 'sample')


def per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Shape [N] to [N, 1, ...] with as many dimensions as ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1)).to(like)


def add_noise(clean: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """``a x_0 + s e``."""
    alpha_bar = per_sample(alpha_bar, clean)
    return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise


def prediction_target(
    prediction_type: str, clean: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor
) -> torch.Tensor:
    """The tensor that the denoiser should give: ``e``, ``a e - s x_0`` or ``x_0``."""
    if prediction_type == 'epsilon':
        return noise
    if prediction_type == 'sample':
        return clean
    assert prediction_type == 'v_prediction', prediction_type
    alpha_bar = per_sample(alpha_bar, clean)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean


def min_snr_weights(prediction_type: str, alpha_bar: torch.Tensor, gamma: float) -> torch.Tensor:
    """Weights [N] of Min-SNR (Hang et al. 2023, equation 6 and appendix for v)."""
    snr = alpha_bar / (1 - alpha_bar)
    clipped = snr.clamp(max=gamma)
    divisor = {'epsilon': snr, 'v_prediction': snr + 1, 'sample': torch.ones_like(snr)}
    return clipped / divisor[prediction_type]


def condition_weights(chosen: torch.Tensor, num_frames: int, weight: float) -> torch.Tensor:
    """Weights [N, T] of frames: ``weight`` for ``chosen`` [N], 1 for the others, then mean 1."""
    frames = torch.ones(len(chosen), num_frames, device=chosen.device)
    frames.scatter_(1, chosen[:, None], weight)
    return frames / frames.mean(1, keepdim=True)


def weighted_mse(
    prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error, a scalar in float32.

    Args:
        prediction: [N, ...].
        target: the same shape.
        weights: of each sample, [N], or of each frame of [N, C, T, ...], [N, T].
    """
    error = F.mse_loss(prediction.float(), target.float(), reduction='none')
    if weights is not None and weights.ndim == 2:
        error = error.transpose(1, 2).flatten(2).mean(2)
    else:
        error = error.flatten(1).mean(1)
    return (error if weights is None else error * weights).mean()

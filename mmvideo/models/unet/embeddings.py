"""Sinusoidal embeddings of time and of frame positions.

Shapes: N batch, T frames, C channels, E time embedding width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmvideo.errors import InputError

MAX_PERIOD = 10_000.0


def timestep_sinusoid(timestep: Tensor, channels: int) -> Tensor:
    """Cosines then sines of the timestep at ``channels / 2`` frequencies (DDPM, Ho et al. 2020).

    Args:
        timestep: [N], whole or fractional.
        channels: even C.

    Returns:
        [N, C] float32.
    """
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
    angles = timestep.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def guidance_sinusoid(scale: float, channels: int) -> Tensor:
    """Sines then cosines of a guidance scale, [C] float32 (Luo et al. 2023, section 4.2).

    The weight of the guidance is the scale less one, and frequencies fall a little faster than
    those of timesteps.
    """
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float32)
    angles = 1000 * (scale - 1) * torch.exp(-math.log(MAX_PERIOD) * steps / (half - 1))
    return torch.cat([angles.sin(), angles.cos()])


def timestep_wave(timestep: Tensor | float, sample: Tensor, channels: int) -> Tensor:
    """The sinusoid of one timestep for all clips of a sample [N, ...], or of [N]: [N, C].

    Raises:
        InputError: another number of timesteps.
    """
    steps = torch.as_tensor(timestep, device=sample.device)
    if steps.dim() > 1 or steps.numel() not in (1, sample.shape[0]):
        raise InputError(
            f'timestep has shape {tuple(steps.shape)}: expected a number or '
            f'[{sample.shape[0]}], one for each clip'
        )
    return timestep_sinusoid(steps.expand(sample.shape[0]), channels).to(sample.dtype)


def position_sinusoid(positions: int, channels: int) -> Tensor:
    """Interleaved sines and cosines of a frame's position ("Attention Is All You Need", 3.5).

    Returns:
        [1, positions, C] float32, the layout of public motion checkpoints.
    """
    frequency = torch.exp(torch.arange(0, channels, 2) * (-math.log(MAX_PERIOD) / channels))
    angles = torch.arange(positions)[:, None] * frequency
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]


class TimestepEmbedding(nn.Module):
    """Two linear layers with a SiLU between, after the sinusoid: [N, C] -> [N, E].

    The second has as many outputs as the first unless ``out_channels`` says otherwise. With
    ``told_channels`` another sinusoid of that width may be added to the first.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        out_channels: int | None = None,
        told_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width)
        if told_channels is not None:
            self.cond_proj = nn.Linear(told_channels, channels, bias=False)
        self.linear_2 = nn.Linear(width, out_channels or width)

    def forward(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        """[N, C], and [N, told_channels] if any."""
        if told is not None:
            x = x + self.cond_proj(told)
        return self.linear_2(nn.functional.silu(self.linear_1(x)))


class FramePositions(nn.Module):
    """The sinusoid of frame positions; ``pe`` is saved because public checkpoints carry it."""

    pe: Tensor

    def __init__(self, channels: int, positions: int) -> None:
        super().__init__()
        self.register_buffer('pe', position_sinusoid(positions, channels))

    def forward(self, frames: int) -> Tensor:
        """Positions of the first ``frames`` frames, [T, C]."""
        return self.pe[0, :frames]

"""Convolutional layers of the trunk.

Shapes: N batch, T frames, C channels, H W latent size, E time embedding width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmvideo.models.unet.context import LayerContext, NormScope, check_divides, check_norm_scope
from mmvideo.ops import scoped_group_norm


class ScopedGroupNorm(nn.GroupNorm):
    """GroupNorm with statistics of each frame (``'frame'``) or each clip (``'clip'``)."""

    def __init__(self, groups: int, channels: int, eps: float, scope: NormScope = 'frame') -> None:
        check_divides(groups, channels, 'norm_num_groups')
        check_norm_scope(scope, 'norm_scope')
        super().__init__(groups, channels, eps)
        self.scope = scope

    def forward(self, x: Tensor, frames: int = 1, silu: bool = False) -> Tensor:  # type: ignore[override]
        """[N*T, C, H, W] -> the same; ``silu`` applies the activation that follows."""
        joint = frames if self.scope == 'clip' else 1
        return scoped_group_norm(x, self.num_groups, self.weight, self.bias, self.eps, joint, silu)


def picture_convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    """3x3 places."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def frame_convolution(in_channels: int, out_channels: int) -> nn.Conv3d:
    """A place in 3 frames; outside the clip there are zeros."""
    return nn.Conv3d(in_channels, out_channels, (3, 1, 1), padding=(1, 0, 0))


def convolve_frames(layer: nn.Module, x: Tensor, frames: int) -> Tensor:
    """A convolution over time, each place by itself: [N*T, C, H, W] -> [N*T, C_out, H, W].

    ``layer`` takes [N, C, T, H, W]; the clip is such a view of the frames, and back.
    """
    clips = x.unflatten(0, (-1, frames)).transpose(1, 2)
    return layer(clips).transpose(1, 2).flatten(0, 1)


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, + time, norm, SiLU, conv, + input (Rombach et al. 2022, appendix E).

    Its convolutions see 3x3 places of a frame or, with ``temporal``, 3 frames of a place (Blattmann
    et al. 2023, "Align your Latents", section 3.1).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        groups: int = 32,
        eps: float = 1e-5,
        norm_scope: NormScope = 'frame',
        temporal: bool = False,
    ) -> None:
        super().__init__()
        convolution = frame_convolution if temporal else picture_convolution
        self.temporal = temporal
        self.norm1 = ScopedGroupNorm(groups, in_channels, eps, norm_scope)
        self.conv1 = convolution(in_channels, out_channels)
        self.time_emb_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = ScopedGroupNorm(groups, out_channels, eps, norm_scope)
        self.conv2 = convolution(out_channels, out_channels)
        self.conv_shortcut: nn.Module | None = None
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """[N*T, C, H, W] -> [N*T, C_out, H, W]; ``context.time`` is [N, E]."""
        y = self._convolve(self.conv1, self.norm1(x, context.frames, silu=True), context)
        time = self.time_emb_proj(context.time)[:, None, :, None, None]  # N 1 C 1 1
        y = (y.unflatten(0, (-1, context.frames)) + time).flatten(0, 1)
        y = self._convolve(self.conv2, self.norm2(y, context.frames, silu=True), context)
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + y

    def _convolve(self, layer: nn.Module, x: Tensor, context: LayerContext) -> Tensor:
        return convolve_frames(layer, x, context.frames) if self.temporal else layer(x)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2: H -> ceil(H / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest neighbour to the size of the skip connection it meets, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode='nearest'))

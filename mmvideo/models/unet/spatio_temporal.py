"""Stable Video Diffusion's layers: the image U-Net's, each mixed with one that sees time.

Blattmann et al. 2023, "Stable Video Diffusion"; the layers are those of "Align your Latents"
(Blattmann et al. 2023), section 3.1. Parameter names are those of diffusers'
UNetSpatioTemporalConditionModel.

Shapes: N batch, T frames, C channels, H W latent size, P = H*W places, L tokens, D width.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mmvideo.errors import ConfigError, nearest
from mmvideo.models.unet.attention import FeedForward, SpatialBlock, SpatialTransformer
from mmvideo.models.unet.context import LayerContext, NormScope
from mmvideo.models.unet.embeddings import TimestepEmbedding, timestep_sinusoid
from mmvideo.models.unet.motion import attend_frames
from mmvideo.models.unet.resnet import ResnetBlock

Mixing = Literal['learned', 'learned_with_images']
MIXINGS: tuple[str, ...] = get_args(Mixing)


def check_mixing(value: str) -> None:
    """Raise ConfigError unless ``value`` is a way to mix."""
    if value not in MIXINGS:
        raise ConfigError(
            f'temporal_mixing={value!r}: expected one of {MIXINGS} or None.'
            f'{nearest(value, MIXINGS)}'
        )


class TimeMixer(nn.Module):
    """``a * spatial + (1 - a) * temporal`` with a learned, a = sigmoid(mix_factor).

    With ``'learned_with_images'``, frames that are pictures by themselves have a = 1.
    """

    def __init__(self, mixing: Mixing = 'learned_with_images', factor: float = 0.5) -> None:
        super().__init__()
        check_mixing(mixing)
        self.sees_images = mixing == 'learned_with_images'
        self.mix_factor = nn.Parameter(torch.tensor([factor]))

    def forward(self, spatial: Tensor, temporal: Tensor, context: LayerContext) -> Tensor:
        """Two of [N*T, ...] -> [N*T, ...]."""
        alpha = self.mix_factor.sigmoid()
        if self.sees_images and context.image_only is not None:
            alpha = torch.where(context.image_only.flatten(), 1.0, alpha)
            alpha = alpha.reshape(-1, *[1] * (spatial.dim() - 1))
        return torch.lerp(temporal, spatial, alpha.to(spatial.dtype))


class SpatioTemporalResnet(nn.Module):
    """A resnet over places, then one over frames, mixed."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        groups: int = 32,
        eps: float = 1e-5,
        norm_scope: NormScope = 'frame',
        mixing: Mixing = 'learned_with_images',
    ) -> None:
        super().__init__()
        self.spatial_res_block = ResnetBlock(
            in_channels, out_channels, time_channels, groups, eps, norm_scope
        )
        self.temporal_res_block = ResnetBlock(
            out_channels, out_channels, time_channels, groups, eps, 'clip', temporal=True
        )
        self.time_mixer = TimeMixer(mixing)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """[N*T, C, H, W] -> [N*T, C_out, H, W]."""
        x = self.spatial_res_block(x, context)
        return self.time_mixer(x, self.temporal_res_block(x, context), context)


class TimeBlock(SpatialBlock):
    """A feed-forward, then the layers of a spatial block over frames; one sequence for each place.

    Its attention to the context sees that of the first frame.
    """

    def __init__(self, channels: int, heads: int, context_channels: int) -> None:
        super().__init__(channels, heads, context_channels)
        self.norm_in = nn.LayerNorm(channels)
        self.ff_in = FeedForward(channels)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """[N*T, P, C] -> [N*T, P, C]."""
        x = x.unflatten(0, (-1, context.frames))  # N T P C
        x = x + self.ff_in(self.norm_in(x))
        x = x + attend_frames(self.attn1, self.norm1(x))
        x = self.see_text(x.flatten(1, 2), _first_frame(context, x.shape[0]))  # N T*P C
        return (x + self.ff(self.norm3(x))).unflatten(1, (context.frames, -1)).flatten(0, 1)


def _first_frame(context: LayerContext, clips: int) -> Tensor:
    """The context of each clip's first frame, [N, L, D]."""
    assert context.text is not None, 'temporal attention needs context.text'
    return context.text.unflatten(0, (clips, -1))[:, 0]


class SpatioTemporalTransformer(SpatialTransformer):
    """The image transformer with a block over frames after each of its own, mixed.

    Frames get their number's sinusoid through two layers before the temporal blocks, so a clip may
    have any length.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        context_channels: int,
        num_layers: int = 1,
        groups: int = 32,
        linear_projection: bool = True,
        mixing: Mixing = 'learned_with_images',
    ) -> None:
        super().__init__(channels, heads, context_channels, num_layers, groups, linear_projection)
        self.temporal_transformer_blocks = nn.ModuleList(
            TimeBlock(channels, heads, context_channels) for _ in range(num_layers)
        )
        self.time_pos_embed = TimestepEmbedding(channels, 4 * channels, channels)
        self.time_mixer = TimeMixer(mixing)

    def run_blocks(self, x: Tensor, context: LayerContext) -> Tensor:
        """[N*T, P, C] -> [N*T, P, C]."""
        position = self._positions(x, context.frames)  # T 1 C
        for block, over_time in zip(
            self.transformer_blocks, self.temporal_transformer_blocks, strict=True
        ):
            x = block(x, context)
            placed = (x.unflatten(0, (-1, context.frames)) + position).flatten(0, 1)
            x = self.time_mixer(x, over_time(placed, context), context)
        return x

    def _positions(self, x: Tensor, frames: int) -> Tensor:
        number = torch.arange(frames, device=x.device)
        return self.time_pos_embed(timestep_sinusoid(number, x.shape[-1]).to(x.dtype))[:, None]

"""I2VGen-XL's temporal convolutions (Wang et al. 2023, "ModelScope", section 3.2).

Shapes: N batch, T frames, C channels, H W latent size.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmvideo.models.unet.context import LayerContext
from mmvideo.models.unet.resnet import ScopedGroupNorm, convolve_frames, frame_convolution
from mmvideo.registry import MODELS


@MODELS.register_module()
class TemporalConv(nn.Module):
    """Four times norm over the clip, SiLU, convolution over 3 frames; then + input.

    It begins as the identity: the last convolution is zero. Parameter names are those of
    diffusers' TemporalConvLayer.

    Args:
        channels: C of the layer; ``VideoUNet`` gives it.
        norm_num_groups: groups of the GroupNorms.
        dropout: in training, before all convolutions but the first.
    """

    after = 'resnet'

    def __init__(self, channels: int, norm_num_groups: int = 32, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv1 = _layer(channels, norm_num_groups, None)
        self.conv2 = _layer(channels, norm_num_groups, dropout)
        self.conv3 = _layer(channels, norm_num_groups, dropout)
        self.conv4 = _layer(channels, norm_num_groups, dropout)
        for parameter in self.conv4[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """[N*T, C, H, W] -> [N*T, C, H, W]."""
        y = x
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            y = layer[0](y, context.frames, silu=True)
            for dropout in layer[2:-1]:
                y = dropout(y)
            y = convolve_frames(layer[-1], y, context.frames)
        return x + y


def _layer(channels: int, groups: int, dropout: float | None) -> nn.Sequential:
    """The norm applies the SiLU, whose place public checkpoints number."""
    norm = ScopedGroupNorm(groups, channels, 1e-5, 'clip')
    between = [] if dropout is None else [nn.Dropout(dropout)]
    return nn.Sequential(norm, nn.Identity(), *between, frame_convolution(channels, channels))

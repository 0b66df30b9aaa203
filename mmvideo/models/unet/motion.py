"""Transformers over frames, one sequence for each place: AnimateDiff's and I2VGen-XL's.

Shapes: N batch, T frames, C channels, H W latent size, P = H*W places.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmvideo.errors import ConfigError, InputError
from mmvideo.models.unet.attention import Attention, FeedForward, to_pictures, to_tokens
from mmvideo.models.unet.context import LayerContext, NormScope, check_divides
from mmvideo.models.unet.embeddings import FramePositions
from mmvideo.models.unet.resnet import ScopedGroupNorm
from mmvideo.ops import temporal_attention
from mmvideo.registry import MODELS


def check_frames(frames: int, max_positions: int) -> None:
    """Raise InputError when a clip is longer than the motion module has positions for."""
    if frames > max_positions:
        raise InputError(
            f'{frames} frames, but this motion module has {max_positions} positions: ask for '
            f'num_frames <= {max_positions}, or use a motion module with more positions'
        )


class TemporalBlock(nn.Module):
    """One or two self-attentions over frames, then a feed-forward; each after a LayerNorm.

    Without ``max_positions`` it does not tell frames apart by their position.
    """

    def __init__(
        self, channels: int, heads: int, max_positions: int | None, attention_blocks: int = 2
    ) -> None:
        super().__init__()
        self.pos_embed: FramePositions | None = None
        if max_positions is not None:
            self.pos_embed = FramePositions(channels, max_positions)
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        if attention_blocks == 2:
            self.norm2 = nn.LayerNorm(channels)
            self.attn2 = Attention(channels, heads)
        self.attention_blocks = attention_blocks
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: LayerContext | None = None) -> Tensor:
        """[N, T, P, C] -> [N, T, P, C]; with ``context.controls.windows``, window by window."""
        context = context or LayerContext()
        scale, windows = context.motion_scale, context.controls.windows

        def attend(part: Tensor, frames: Tensor) -> Tensor:
            return self.attend(part, None if scale is None else scale[frames])

        x = self.attend(x, scale) if windows is None else windows.fuse(attend, x, 1)
        return x + self.ff(self.norm3(x))

    def attend(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Both attentions of [N, T, P, C]; ``scale`` [T] multiplies their queries."""
        positions = None if self.pos_embed is None else self.pos_embed(x.shape[1])[:, None]  # T 1 C
        x = x + attend_frames(self.attn1, self.norm1(x), positions, scale)
        if self.attention_blocks == 2:
            x = x + attend_frames(self.attn2, self.norm2(x), positions, scale)
        return x


def attend_frames(
    layer: Attention, x: Tensor, positions: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """Self-attention over T of [N, T, P, C], with ``positions`` [T, 1, C] added to its input.

    ``scale`` [T] multiplies the queries of each frame.

    The position could be a bias of q, k and v a frame (``positions @ W``), the same up to
    rounding. Without a kernel that adds it while it projects, that touches 3C numbers a token where
    adding it here touches C, and a compiler joins this addition to the LayerNorm before it.
    """
    q, k, v = layer.qkv(x if positions is None else x + positions)
    if scale is not None:
        q = q * scale.to(q)[:, None, None, None]
    return layer.out(temporal_attention(q, k, v))


class FrameTransformer(nn.Module):
    """Norm, projection, temporal blocks, projection, + input.

    Args:
        channels: C of the layer.
        width: channels of the blocks.
        heads: of each attention, a divisor of ``width``.
        num_layers: blocks.
        norm: the GroupNorm before them.
        max_positions: longest clip; None for blocks without positions, and for any length.
        attention_blocks: attentions a block.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        heads: int,
        num_layers: int,
        norm: ScopedGroupNorm,
        max_positions: int | None = None,
        attention_blocks: int = 2,
    ) -> None:
        super().__init__()
        self.max_positions = max_positions
        self.norm = norm
        self.proj_in = nn.Linear(channels, width)
        self.transformer_blocks = nn.ModuleList(
            TemporalBlock(width, heads, max_positions, attention_blocks) for _ in range(num_layers)
        )
        self.proj_out = nn.Linear(width, channels)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """[N*T, C, H, W] -> [N*T, C, H, W].

        Raises:
            InputError: the clip is longer than ``max_positions``.
        """
        windows, strength = context.controls.windows, context.motion_strength
        if self.max_positions is not None:
            check_frames(context.frames if windows is None else windows.longest, self.max_positions)
        y = to_tokens(self.norm(x, context.frames))
        y = self.proj_in(y).unflatten(0, (-1, context.frames))  # N T P C
        for block in self.transformer_blocks:
            y = block(y, context)
        y = self.proj_out(y)
        if strength is not None:
            y = y * strength.to(y)[:, None, None]
        return x + to_pictures(y.flatten(0, 1), x)


@MODELS.register_module()
class MotionModule(FrameTransformer):
    """AnimateDiff's motion module (Guo et al. 2023, section 4.2), for one layer of the trunk.

    It begins as the identity: ``proj_out`` is zero.

    Args:
        channels: C of the layer; ``VideoUNet`` gives it.
        num_attention_heads: heads of each temporal attention, a divisor of C.
        num_layers: temporal transformer blocks.
        max_positions: longest clip; 24 in AnimateDiff v1, else 32.
        norm_num_groups: groups of the GroupNorm before the blocks.
        norm_scope: statistics of the GroupNorm: ``'frame'`` as in the official AnimateDiff and
            PIA, ``'clip'`` as in diffusers and the SDXL beta.
        attention_blocks: temporal attentions a block: 2, or 1 in SparseCtrl.
    """

    def __init__(
        self,
        channels: int,
        num_attention_heads: int = 8,
        num_layers: int = 1,
        max_positions: int = 32,
        norm_num_groups: int = 32,
        norm_scope: NormScope = 'frame',
        attention_blocks: int = 2,
    ) -> None:
        if attention_blocks not in (1, 2):
            raise ConfigError(f'attention_blocks={attention_blocks!r}: expected 1 or 2')
        if max_positions < 1:
            raise ConfigError(f'max_positions={max_positions!r}: expected at least 1')
        if channels % 2:
            raise ConfigError(f'a motion module needs an even number of channels, got {channels}')
        super().__init__(
            channels,
            channels,
            num_attention_heads,
            num_layers,
            ScopedGroupNorm(norm_num_groups, channels, 1e-6, norm_scope),
            max_positions,
            attention_blocks,
        )
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)


@MODELS.register_module()
class TemporalTransformer(FrameTransformer):
    """I2VGen-XL's transformer over frames, without positions; its norm is over the clip.

    Parameter names are those of diffusers' TransformerTemporalModel.

    Args:
        channels: C of the layer; ``VideoUNet`` gives it.
        num_attention_heads: heads of each attention; None for ``channels / head_channels``.
        head_channels: size of a head; all together may be more or fewer than C.
        num_layers: temporal transformer blocks.
        norm_num_groups: groups of the GroupNorm before the blocks.
    """

    only_with_attention = True

    def __init__(
        self,
        channels: int,
        num_attention_heads: int | None = None,
        head_channels: int = 64,
        num_layers: int = 1,
        norm_num_groups: int = 32,
    ) -> None:
        if num_attention_heads is None:
            check_divides(head_channels, channels, 'head_channels')
        heads = num_attention_heads or channels // head_channels
        norm = ScopedGroupNorm(norm_num_groups, channels, 1e-6, 'clip')
        super().__init__(channels, heads * head_channels, heads, num_layers, norm)

"""The networks of ControlNet and SparseCtrl: the trunk's way down, beside it.

What the encoder makes at each skip connection goes through a convolution that begins at zero and
is added to the trunk's own (Zhang et al. 2023, ControlNet, section 3.1). SparseCtrl's has motion
modules, so that pictures on some frames speak to all, sees no noisy latents, and is told by a mask
which frames have a picture (Guo et al. 2023, SparseCtrl, section 3.2).

It is made of the trunk's stages; parameter names are those of diffusers' ControlNetModel and
SparseControlNetModel.

Shapes: N batch, T frames, t frames seen at once, C channels, H W latent size, L tokens, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvideo.errors import WeightsError, nearest
from mmvideo.models.unet.assembly import (
    DOWN_BLOCKS,
    LayerPlan,
    cross_attention,
    down_stages,
    make_slots,
    per_level,
    skip_channels,
)
from mmvideo.models.unet.context import Controls, FrameWindows, LayerContext, NormScope
from mmvideo.models.unet.diffusers_config import unet_arguments
from mmvideo.models.unet.embeddings import TimestepEmbedding, timestep_wave
from mmvideo.models.unet.resnet import picture_convolution
from mmvideo.models.unet.stages import MidStage

_CHUNK = 16  # pictures that are embedded at once
# diffusers' classes, and the trunk's whose settings they share.
CLASSES = {'ControlNetModel': 'UNet2DConditionModel', 'SparseControlNetModel': 'UNetMotionModel'}
_OWN = (
    'conditioning_channels',
    'conditioning_embedding_out_channels',
    'controlnet_conditioning_channel_order',
    'global_pool_conditions',
    'concat_conditioning_mask',
    'use_simplified_condition_embedding',
)
_UNUSED = ('out_channels', 'up_block_types', 'motion_mid_block', 'sample_size')


@dataclass(frozen=True)
class Residuals:
    """What is added to the trunk: one for each skip connection, finest first, and the middle.

    Attributes:
        down: [N*t, C, H, W] each.
        mid: [N*t, C, H, W].
    """

    down: Sequence[Tensor]
    mid: Tensor

    def scaled(self, scale: float | Tensor) -> Residuals:
        """Times a number, or one for each frame [t]."""

        def times(x: Tensor) -> Tensor:
            if not isinstance(scale, Tensor):
                return x * scale
            each = scale.to(x)[:, None, None, None]
            return (x.unflatten(0, (-1, len(scale))) * each).flatten(0, 1)

        return Residuals([times(x) for x in self.down], times(self.mid))

    def behind_zeros(self) -> Residuals:
        """For a batch whose first half gets nothing."""
        down = [torch.cat([torch.zeros_like(x), x]) for x in self.down]
        return Residuals(down, torch.cat([torch.zeros_like(self.mid), self.mid]))

    def __add__(self, other: Residuals) -> Residuals:
        pairs = zip(self.down, other.down, strict=True)
        return Residuals([a + b for a, b in pairs], self.mid + other.mid)


class PictureEmbedding(nn.Module):
    """Convolutions from pixels to the latents' size: [F, C, H, W] -> [F, C_out, H/8, W/8].

    Each width after the first halves the size.
    """

    def __init__(self, channels: int, widths: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.conv_in = picture_convolution(channels, widths[0])
        self.blocks = nn.ModuleList()
        for before, after in itertools.pairwise(widths):
            self.blocks.append(picture_convolution(before, before))
            self.blocks.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
        self.conv_out = _zero(picture_convolution(widths[-1], out_channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv_in(x))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class ControlEncoder(nn.Module):
    """ControlNet, or with a ``motion_module`` SparseCtrl.

    Args:
        in_channels: of the noisy latents.
        conditioning_channels: of a control picture, without SparseCtrl's mask.
        embedding_widths: see ``PictureEmbedding``; None for pictures that are latents already.
        reversed_channels: pictures are seen as blue, green, red.
        pooled: residuals are averaged over the picture.
        motion_module: config of the motion modules, without its ``channels``.
        others: as ``VideoUNet``'s.
    """

    def __init__(
        self,
        in_channels: int = 4,
        conditioning_channels: int = 3,
        embedding_widths: Sequence[int] | None = (16, 32, 96, 256),
        reversed_channels: bool = False,
        pooled: bool = False,
        down_block_types: Sequence[str] = ('CrossAttnDownBlock2D',) * 3 + ('DownBlock2D',),
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int | Sequence[int] = 2,
        cross_attention_dim: int = 768,
        attention_head_dim: int | Sequence[int] = 8,
        transformer_layers_per_block: int | Sequence[int] = 1,
        use_linear_projection: bool = False,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        motion_module: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        widths, levels = tuple(block_out_channels), len(block_out_channels)
        cross = cross_attention(down_block_types, DOWN_BLOCKS, levels, 'down_block_types')
        layers = per_level(layers_per_block, levels, 'layers_per_block')
        plan = LayerPlan(
            slots=make_slots(motion_module, {}, norm_num_groups),
            time_channels=4 * widths[0],
            context_channels=cross_attention_dim,
            heads=per_level(attention_head_dim, levels, 'attention_head_dim'),
            depths=per_level(transformer_layers_per_block, levels, 'transformer_layers_per_block'),
            groups=norm_num_groups,
            linear_projection=use_linear_projection,
        )
        self.sparse = motion_module is not None
        self.in_channels, self.cross_attention_dim = in_channels, cross_attention_dim
        self.block_out_channels = widths
        self.reversed_channels, self.pooled = reversed_channels, pooled
        self.sees_latents = embedding_widths is None
        self.picture_scale = 1 if embedding_widths is None else 2 ** (len(embedding_widths) - 1)
        self.conv_in = picture_convolution(in_channels, widths[0])
        channels = conditioning_channels + self.sparse
        self.controlnet_cond_embedding: nn.Module = (
            _zero(picture_convolution(channels, widths[0]))
            if embedding_widths is None
            else PictureEmbedding(channels, embedding_widths, widths[0])
        )
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0])
        stages = [plan.stage(i, has, norm_eps) for i, has in enumerate(cross)]
        self.down_blocks = down_stages(stages, widths, layers)
        self.mid_block = MidStage(plan.stage(levels - 1, True, norm_eps, motion=False), widths[-1])
        self.residual_channels = skip_channels(widths, layers)
        self.controlnet_down_blocks = nn.ModuleList(_zero_exit(c) for c in self.residual_channels)
        self.controlnet_mid_block = _zero_exit(widths[-1])

    def embed(self, pictures: Tensor) -> Tensor:
        """Control pictures [..., T, C, H, W], the same in every step, as features of the first
        level [..., T, C_0, H, W]; pixels are in [0, 1], SparseCtrl's mask is the last channel."""
        if self.reversed_channels:
            pictures = pictures.flip(-3)
        flat = pictures.flatten(0, -4)
        parts = [self.controlnet_cond_embedding(chunk) for chunk in flat.split(_CHUNK)]
        return torch.cat(parts).unflatten(0, pictures.shape[:-3])

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        features: Tensor,
        guess_mode: bool = False,
        windows: FrameWindows | None = None,
    ) -> Residuals:
        """What to add to the trunk.

        Args:
            sample: [N, C, t, H, W] noisy latents.
            timestep: one for all, or [N].
            encoder_hidden_states: [N, L, D], or [N*t, L, D] for a prompt a frame.
            features: of ``embed``, [N or 1, t, C_0, H, W].
            guess_mode: weaker where finer, from 0.1 to 1 in the middle.
            windows: motion modules attend inside each and join the results.
        """
        context = LayerContext(
            frames=sample.shape[2],
            time=F.silu(
                self.time_embedding(timestep_wave(timestep, sample, self.block_out_channels[0]))
            ),
            text=encoder_hidden_states,
            controls=Controls(windows=windows),
        )
        x = (self._entered(sample) + features).flatten(0, 1)
        skips = [x]
        for stage in self.down_blocks:
            x, more = stage(x, context)
            skips += more
        x = self.mid_block(x, context)
        pairs = zip(self.controlnet_down_blocks, skips, strict=True)
        outputs = [*(leave(skip) for leave, skip in pairs), self.controlnet_mid_block(x)]
        if self.pooled:
            outputs = [y.mean((2, 3), keepdim=True) for y in outputs]
        elif guess_mode:
            scales = torch.logspace(-1, 0, len(outputs), device=x.device)
            outputs = [y * scale.to(y) for y, scale in zip(outputs, scales, strict=True)]
        return Residuals(outputs[:-1], outputs[-1])

    def _entered(self, sample: Tensor) -> Tensor:
        """Noisy latents after the first convolution, [N, t, C_0, H, W]."""
        if not self.sparse:
            return self.conv_in(sample.transpose(1, 2).flatten(0, 1)).unflatten(
                0, (sample.shape[0], -1)
            )
        assert self.conv_in.bias is not None
        # SparseCtrl is given zeros, of which a convolution makes its bias.
        shape = (sample.shape[0], sample.shape[2], -1, *sample.shape[-2:])
        return self.conv_in.bias[:, None, None].expand(*shape)


def control_arguments(config: Mapping[str, Any], norm_scope: NormScope = 'frame') -> dict[str, Any]:
    """Arguments of ``ControlEncoder`` for diffusers' ``config.json``.

    Args:
        config: of a class in ``CLASSES``.
        norm_scope: statistics of SparseCtrl's motion modules.

    Raises:
        WeightsError: naming a setting that the encoder does not have, or the wrong class.
    """
    name = config.get('_class_name', 'ControlNetModel')
    if name not in CLASSES:
        raise WeightsError(
            f'config of a {name!r}: expected {" or ".join(CLASSES)}.{nearest(name, CLASSES)}'
        )
    sparse = name == 'SparseControlNetModel'
    shared = {k: v for k, v in config.items() if k not in _OWN}
    shared.setdefault('down_block_types', _down_types(sparse))
    if sparse:
        shared |= {'cross_attention_dim': shared.get('cross_attention_dim', 768)}
    arguments = unet_arguments(shared | {'_class_name': CLASSES[name]})
    arguments = {k: v for k, v in arguments.items() if k not in _UNUSED}
    if sparse:
        arguments['motion_module'] |= {'attention_blocks': 1, 'norm_scope': norm_scope}
        if not config.get('concat_conditioning_mask', True):
            raise WeightsError('SparseCtrl config: concat_conditioning_mask=False is not supported')
    order = config.get('controlnet_conditioning_channel_order', 'rgb')
    if order not in ('rgb', 'bgr'):
        raise WeightsError(
            f"ControlNet config: controlnet_conditioning_channel_order={order!r}, expected 'rgb' "
            "or 'bgr'"
        )
    simple = sparse and config.get('use_simplified_condition_embedding', True)
    widths = config.get('conditioning_embedding_out_channels') or (16, 32, 96, 256)
    return arguments | {
        'conditioning_channels': config.get('conditioning_channels', 4 if sparse else 3),
        'embedding_widths': None if simple else tuple(widths),
        'reversed_channels': order == 'bgr',
        'pooled': bool(config.get('global_pool_conditions', False)),
    }


def _down_types(sparse: bool) -> tuple[str, ...]:
    kind = 'Motion' if sparse else '2D'
    return (f'CrossAttnDownBlock{kind}',) * 3 + (f'DownBlock{kind}',)


def _zero_exit(channels: int) -> nn.Conv2d:
    return _zero(nn.Conv2d(channels, channels, 1))


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer

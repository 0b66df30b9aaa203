"""VideoUNet: Stable Diffusion's denoiser for pictures, and for clips with temporal slots.

Parameter names are those of diffusers' UNet2DConditionModel and, with motion modules,
UNetMotionModel.

Shapes: N batch, T frames, C channels, H W latent size, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmvideo.errors import ConfigError, InputError, nearest
from mmvideo.models.unet.attention import SpatialTransformer
from mmvideo.models.unet.context import LayerContext, NormScope
from mmvideo.models.unet.embeddings import TimestepEmbedding, timestep_sinusoid
from mmvideo.models.unet.motion import MotionModule, check_frames
from mmvideo.models.unet.resnet import ResnetBlock, ScopedGroupNorm
from mmvideo.models.unet.stages import DownStage, MidStage, StageParts, TemporalSlot, UpStage
from mmvideo.registry import MODELS

# Both of diffusers' names for a stage mean the same here; True where it has spatial transformers.
DOWN_BLOCKS = {
    'CrossAttnDownBlock2D': True,
    'CrossAttnDownBlockMotion': True,
    'DownBlock2D': False,
    'DownBlockMotion': False,
}
UP_BLOCKS = {
    'CrossAttnUpBlock2D': True,
    'CrossAttnUpBlockMotion': True,
    'UpBlock2D': False,
    'UpBlockMotion': False,
}


@MODELS.register_module()
class VideoUNet(nn.Module):
    """The trunk of every family: a U-Net over frames folded in the batch, with temporal slots.

    Without ``motion_module`` it is the image U-Net of Stable Diffusion and takes each frame for
    itself; with it, AnimateDiff's and PIA's video U-Net.

    Args:
        sample_size: latent height and width of training, kept for who needs a default.
        in_channels: 4, or 9 for PIA.
        out_channels: 4.
        down_block_types: one of ``DOWN_BLOCKS`` a level, finest first.
        up_block_types: one of ``UP_BLOCKS`` a level, coarsest first.
        block_out_channels: channels of each level.
        layers_per_block: layers of a down stage, for all or for each level; an up stage has one
            more.
        cross_attention_dim: D of the prompt tokens.
        attention_head_dim: *number* of spatial heads, for all or for each level (diffusers' name).
        transformer_layers_per_block: blocks of a spatial transformer, for all or for each level.
        use_linear_projection: spatial transformers project with linear layers, else 1x1
            convolutions (Stable Diffusion 1.5).
        norm_num_groups: groups of every GroupNorm.
        norm_eps: of the resnets and the output norm.
        resnet_norm_scope: statistics of those: ``'frame'``, or ``'clip'`` for AnimateDiff v1 and
            PIA.
        motion_module: config of the temporal module after each layer, without its ``channels``.
        motion_mid_block: also one in the middle (AnimateDiff v2).
        gradient_checkpointing: recompute every layer in the backward pass.

    Raises:
        ConfigError: naming the setting that cannot be right.
    """

    # The arguments that a builder gave, for an export to write down.
    settings: dict[str, Any]

    def __init__(
        self,
        sample_size: int | Sequence[int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: Sequence[str] = ('CrossAttnDownBlock2D',) * 3 + ('DownBlock2D',),
        up_block_types: Sequence[str] = ('UpBlock2D',) + ('CrossAttnUpBlock2D',) * 3,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int | Sequence[int] = 2,
        cross_attention_dim: int = 768,
        attention_head_dim: int | Sequence[int] = 8,
        transformer_layers_per_block: int | Sequence[int] = 1,
        use_linear_projection: bool = False,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        resnet_norm_scope: NormScope = 'frame',
        motion_module: Mapping[str, Any] | None = None,
        motion_mid_block: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        widths, levels = tuple(block_out_channels), len(block_out_channels)
        down_cross = _cross_attention(down_block_types, DOWN_BLOCKS, levels, 'down_block_types')
        up_cross = _cross_attention(up_block_types, UP_BLOCKS, levels, 'up_block_types')
        layers = _per_level(layers_per_block, levels, 'layers_per_block')
        heads = _per_level(attention_head_dim, levels, 'attention_head_dim')
        depths = _per_level(transformer_layers_per_block, levels, 'transformer_layers_per_block')
        _check_motion(widths, motion_module, motion_mid_block)
        self.sample_size = sample_size
        self.in_channels, self.out_channels = in_channels, out_channels
        self.block_out_channels = widths
        self.cross_attention_dim = cross_attention_dim
        self.gradient_checkpointing = gradient_checkpointing

        def parts(level: int, cross: bool, motion: bool = True) -> StageParts:
            resnet = partial(
                ResnetBlock,
                time_channels=4 * widths[0],
                groups=norm_num_groups,
                eps=norm_eps,
                norm_scope=resnet_norm_scope,
            )
            attention = partial(
                SpatialTransformer,
                heads=heads[level],
                context_channels=cross_attention_dim,
                num_layers=depths[level],
                groups=norm_num_groups,
                linear_projection=use_linear_projection,
            )
            slots = _motion_slots(motion_module if motion else None, norm_num_groups)
            return StageParts(resnet, attention if cross else None, slots)

        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0])
        down = [parts(i, cross) for i, cross in enumerate(down_cross)]
        self.down_blocks = _down_stages(down, widths, layers)
        self.mid_block = MidStage(parts(levels - 1, True, motion_mid_block), widths[-1])
        up = [parts(levels - 1 - i, cross) for i, cross in enumerate(up_cross)]
        self.up_blocks = _up_stages(up, widths, layers)
        self.conv_norm_out = ScopedGroupNorm(
            norm_num_groups, widths[0], norm_eps, resnet_norm_scope
        )
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        self.max_frames = _max_frames(self)

    def enable_gradient_checkpointing(self, enable: bool = True) -> None:
        """Recompute every resnet, transformer and temporal module in the backward pass."""
        self.gradient_checkpointing = enable

    def disable_gradient_checkpointing(self) -> None:
        """Keep what the backward pass needs, the faster way where memory suffices."""
        self.enable_gradient_checkpointing(False)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise (or what the scheduler's prediction type says) in ``sample``.

        Args:
            sample: [N, C, T, H, W] noisy latents, with the condition's channels if any.
            timestep: one for all, or [N].
            encoder_hidden_states: [N, L, D], or [N*T, L, D] for a prompt a frame.
            down_block_additional_residuals: ControlNet's, [N*T, C, H, W] each, one for every skip
                connection, finest first.
            mid_block_additional_residual: ControlNet's, for the output of the middle stage.

        Returns:
            [N, C_out, T, H, W].

        Raises:
            InputError: a shape that does not fit this model, or more frames than ``max_frames``.
        """
        self._check_inputs(sample, encoder_hidden_states)
        context = self._context(sample, timestep, encoder_hidden_states)
        x = self.conv_in(sample.transpose(1, 2).flatten(0, 1))  # N*T C H W
        skips = [x]
        for stage in self.down_blocks:
            x, more = stage(x, context)
            skips += more
        if down_block_additional_residuals is not None:
            skips = _add_each(skips, down_block_additional_residuals)
        x = self.mid_block(x, context)
        if mid_block_additional_residual is not None:
            x = x + mid_block_additional_residual
        for stage in self.up_blocks:
            x = stage(x, skips, context)
        x = self.conv_out(self.conv_norm_out(x, context.frames, silu=True))
        return x.unflatten(0, (-1, context.frames)).transpose(1, 2)

    def _context(self, sample: Tensor, timestep: Tensor | float, text: Tensor) -> LayerContext:
        """Time embedded once a clip, text once for all frames."""
        steps = torch.as_tensor(timestep, device=sample.device)
        if steps.dim() > 1 or steps.numel() not in (1, sample.shape[0]):
            raise InputError(
                f'timestep has shape {tuple(steps.shape)}: expected a number or '
                f'[{sample.shape[0]}], one for each clip'
            )
        wave = timestep_sinusoid(steps.expand(sample.shape[0]), self.block_out_channels[0])
        time = nn.functional.silu(self.time_embedding(wave.to(sample.dtype)))
        return LayerContext(sample.shape[2], time, text, self.gradient_checkpointing)

    def _check_inputs(self, sample: Tensor, text: Tensor) -> None:
        if sample.dim() != 5 or sample.shape[1] != self.in_channels:
            raise InputError(
                f'sample has shape {tuple(sample.shape)}: expected [N, {self.in_channels}, T, H, W]'
            )
        clips, frames = sample.shape[0], sample.shape[2]
        if text.dim() != 3 or text.shape[2] != self.cross_attention_dim:
            raise InputError(
                f'encoder_hidden_states has shape {tuple(text.shape)}: expected '
                f'[{clips}, L, {self.cross_attention_dim}]'
            )
        if text.shape[0] not in (clips, clips * frames):
            raise InputError(
                f'encoder_hidden_states has {text.shape[0]} rows: expected {clips}, one for each '
                f'clip, or {clips * frames}, one for each frame'
            )
        if self.max_frames is not None:
            check_frames(frames, self.max_frames)


def _down_stages(
    parts: Sequence[StageParts], widths: Sequence[int], layers: Sequence[int]
) -> nn.ModuleList:
    """Finest first; all but the last halve the size."""
    before = (widths[0], *widths)
    last = len(widths) - 1
    return nn.ModuleList(
        DownStage(part, before[i], widths[i], layers[i], downsample=i < last)
        for i, part in enumerate(parts)
    )


def _up_stages(
    parts: Sequence[StageParts], widths: Sequence[int], layers: Sequence[int]
) -> nn.ModuleList:
    """Coarsest first; each meets, from the end, the skip connections of the way down."""
    skips = [widths[0]]
    for i, width in enumerate(widths):
        skips += [width] * (layers[i] + (i < len(widths) - 1))
    stages, channels = nn.ModuleList(), widths[-1]
    for i, part in enumerate(parts):
        level = len(widths) - 1 - i
        taken = [skips.pop() for _ in range(layers[level] + 1)]
        stages.append(UpStage(part, channels, widths[level], taken, upsample=level > 0))
        channels = widths[level]
    return stages


def _motion_slots(
    config: Mapping[str, Any] | None, norm_num_groups: int
) -> tuple[TemporalSlot, ...]:
    """AnimateDiff's one slot; its modules have the trunk's groups unless they say otherwise."""
    if config is None:
        return ()
    settings = {'norm_num_groups': norm_num_groups, **config}

    def build(channels: int) -> nn.Module:
        return MODELS.build({**settings, 'channels': channels})

    return (TemporalSlot('motion_modules', 'attention', build),)


def _check_motion(widths: Sequence[int], config: Mapping[str, Any] | None, mid_block: bool) -> None:
    if not widths or widths[0] % 2:
        raise ConfigError(f'block_out_channels={widths}: expected an even number first')
    if config is None and mid_block:
        raise ConfigError(
            'motion_mid_block=True without a motion_module: add motion_module=dict('
            "type='MotionModule'), or drop motion_mid_block"
        )
    if config is not None and 'type' not in config:
        raise ConfigError("motion_module has no 'type': expected dict(type='MotionModule', ...)")


def _max_frames(model: nn.Module) -> int | None:
    """The shortest limit of any motion module, None without."""
    limits = [m.max_positions for m in model.modules() if isinstance(m, MotionModule)]
    return min(limits, default=None)


def _cross_attention(
    types: Sequence[str], known: Mapping[str, bool], levels: int, key: str
) -> list[bool]:
    """Which stages have spatial transformers."""
    if len(types) != levels:
        raise ConfigError(
            f'{key} names {len(types)} stages, block_out_channels has {levels}: expected as many'
        )
    for name in types:
        if name not in known:
            raise ConfigError(
                f'{key}: unknown stage {name!r}, expected one of {sorted(known)}.'
                f'{nearest(name, known)}'
            )
    return [known[name] for name in types]


def _per_level(value: int | Sequence[int], levels: int, key: str) -> list[int]:
    """One whole number for all levels, or one for each."""
    values = [value] * levels if isinstance(value, int) else list(value)
    if len(values) != levels or not all(isinstance(v, int) and v >= 1 for v in values):
        raise ConfigError(
            f'{key}={value!r}: expected a positive whole number, or {levels}, one for each level'
        )
    return values


def _add_each(skips: list[Tensor], residuals: Sequence[Tensor]) -> list[Tensor]:
    if len(residuals) != len(skips):
        raise InputError(
            f'{len(residuals)} down_block_additional_residuals: expected {len(skips)}, one for '
            f'each skip connection'
        )
    return [skip + residual for skip, residual in zip(skips, residuals, strict=True)]

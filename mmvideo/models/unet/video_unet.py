"""VideoUNet: Stable Diffusion's denoiser for pictures, and for clips with temporal slots.

Parameter names are those of diffusers' UNet2DConditionModel and, by what is temporal in it,
UNetMotionModel, UNetSpatioTemporalConditionModel or I2VGenXLUNet.

Shapes: N batch, T frames, C channels, H W latent size, L tokens, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvideo.checkpoints.layouts import Betas
from mmvideo.errors import InputError
from mmvideo.models.unet.assembly import (
    DOWN_BLOCKS,
    UP_BLOCKS,
    LayerPlan,
    build_temporal,
    check_motion,
    check_told,
    cross_attention,
    down_stages,
    make_slots,
    per_level,
    per_stage,
    up_stages,
)
from mmvideo.models.unet.conditions import (
    Role,
    TrunkSizes,
    build_embeddings,
    check_conditions,
    embed,
    extra_channels,
)
from mmvideo.models.unet.context import Controls, ImageContext, LayerContext, NormScope
from mmvideo.models.unet.embeddings import TimestepEmbedding, guidance_sinusoid, timestep_wave
from mmvideo.models.unet.motion import FrameTransformer, check_frames
from mmvideo.models.unet.resnet import ScopedGroupNorm
from mmvideo.models.unet.spatio_temporal import Mixing
from mmvideo.models.unet.stages import MidStage, UpStage, run_module
from mmvideo.registry import MODELS

_LOG = logging.getLogger(__name__)


@MODELS.register_module()
class VideoUNet(nn.Module):
    """The trunk of every family: a U-Net over frames folded in the batch, with temporal slots.

    By itself it is the image U-Net of Stable Diffusion and takes each frame for itself. With a
    ``motion_module`` it is AnimateDiff's and PIA's network, with ``temporal_mixing`` Stable Video
    Diffusion's, with ``temporal_slots`` and ``transformer_in`` I2VGen-XL's.

    Args:
        sample_size: latent height and width of training, kept for who needs a default.
        in_channels: of the sample: 4, 9 for PIA, 8 for SVD.
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
        norm_eps: of the resnets and the output norm; one for all, or one for each down stage, the
            middle, each up stage and the output.
        resnet_norm_scope: statistics of those: ``'frame'``, or ``'clip'`` for AnimateDiff v1 and
            PIA.
        motion_module: config of the temporal module after each layer, without its ``channels``.
        motion_mid_block: also one in the middle (AnimateDiff v2).
        temporal_mixing: resnets and transformers are mixed with ones that see time:
            ``'learned_with_images'`` as in SVD, where pictures among the frames are left alone, or
            ``'learned'``.
        temporal_slots: configs of temporal modules, without their ``channels``, by the name of
            their lists, such as ``temp_convs``; in the order in which they run.
        transformer_in: config of a temporal module after the first convolution.
        embeddings: configs of the modules for what the model is told besides time and prompt, by
            the name of their parameters; see ``conditions``.
        num_frames: length of the clips of training, kept for who needs a default.
        time_cond_proj_dim: width of the guidance scale's sinusoid, for a model that was distilled
            with guidance in it (latent consistency models); None for others. diffusers' name.
        gradient_checkpointing: recompute every layer in the backward pass.

    Raises:
        ConfigError: naming the setting that cannot be right.
    """

    # The arguments that a builder gave, for an export to write down.
    settings: dict[str, Any]
    # The noise schedule of its motion modules' training, where a builder recognised it.
    trained_betas: Betas | None = None

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
        norm_eps: float | Sequence[float] = 1e-5,
        resnet_norm_scope: NormScope = 'frame',
        motion_module: Mapping[str, Any] | None = None,
        motion_mid_block: bool = False,
        temporal_mixing: Mixing | None = None,
        temporal_slots: Mapping[str, Mapping[str, Any]] | None = None,
        transformer_in: Mapping[str, Any] | None = None,
        embeddings: Mapping[str, Mapping[str, Any]] | None = None,
        num_frames: int | None = None,
        time_cond_proj_dim: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        widths, levels = tuple(block_out_channels), len(block_out_channels)
        down_cross = cross_attention(down_block_types, DOWN_BLOCKS, levels, 'down_block_types')
        up_cross = cross_attention(up_block_types, UP_BLOCKS, levels, 'up_block_types')
        layers = per_level(layers_per_block, levels, 'layers_per_block')
        eps = per_stage(norm_eps, levels, 'norm_eps')
        check_motion(widths, motion_module, motion_mid_block)
        self.sample_size, self.num_frames = sample_size, num_frames
        self.in_channels, self.out_channels = in_channels, out_channels
        self.block_out_channels = widths
        self.cross_attention_dim = cross_attention_dim
        self.gradient_checkpointing = gradient_checkpointing

        plan = LayerPlan(
            slots=make_slots(motion_module, temporal_slots or {}, norm_num_groups),
            time_channels=4 * widths[0],
            context_channels=cross_attention_dim,
            heads=per_level(attention_head_dim, levels, 'attention_head_dim'),
            depths=per_level(transformer_layers_per_block, levels, 'transformer_layers_per_block'),
            groups=norm_num_groups,
            norm_scope=resnet_norm_scope,
            linear_projection=use_linear_projection,
            mixing=temporal_mixing,
        )
        sizes = TrunkSizes(in_channels, widths[0], 4 * widths[0], cross_attention_dim)
        extra = build_embeddings(embeddings or {}, sizes)
        self.conv_in = nn.Conv2d(
            in_channels + extra_channels(extra.values()), widths[0], 3, padding=1
        )
        self.transformer_in: nn.Module | None = None
        if transformer_in is not None:
            self.transformer_in = build_temporal(transformer_in, widths[0], norm_num_groups)
        check_told(time_cond_proj_dim)
        self.time_cond_proj_dim = time_cond_proj_dim
        self.time_embedding = TimestepEmbedding(
            widths[0], 4 * widths[0], told_channels=time_cond_proj_dim
        )
        self.embedding_names = tuple(extra)
        for name, module in extra.items():
            self.add_module(name, module)
        down = [plan.stage(i, cross, eps[i]) for i, cross in enumerate(down_cross)]
        self.down_blocks = down_stages(down, widths, layers)
        middle = plan.stage(levels - 1, True, eps[levels], motion_mid_block)
        self.mid_block = MidStage(middle, widths[-1])
        up = [plan.stage(levels - 1 - i, c, eps[levels + 1 + i]) for i, c in enumerate(up_cross)]
        self.up_blocks = up_stages(up, widths, layers)
        self.conv_norm_out = ScopedGroupNorm(norm_num_groups, widths[0], eps[-1], resnet_norm_scope)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        self.max_frames = _max_frames(self)

    @property
    def deepest(self) -> int:
        """Skip connections after the first, the most that ``DeepFeatures.depth`` can be."""
        return sum(len(stage.resnets) for stage in self._up_stages()) - 1

    def _up_stages(self) -> list[UpStage]:
        return [stage for stage in self.up_blocks if isinstance(stage, UpStage)]

    def enable_gradient_checkpointing(self, enable: bool = True) -> None:
        """Recompute every resnet, transformer and temporal module in the backward pass."""
        self.gradient_checkpointing = enable

    def disable_gradient_checkpointing(self) -> None:
        """Keep what the backward pass needs, the faster way where memory suffices."""
        self.enable_gradient_checkpointing(False)

    def enable_forward_chunking(self, chunk_size: int | None = None, dim: int = 0) -> None:
        """Nothing to do: diffusers' switch for memory, which changes no value there either."""
        if dim not in (0, 1):
            raise InputError(f'enable_forward_chunking: dim={dim!r}, expected 0 or 1.')
        _LOG.info(
            'chunks of the feed-forward have no effect; for less memory use windows or offloading'
        )

    def disable_forward_chunking(self) -> None:
        """Nothing to do, see ``enable_forward_chunking``."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        images: ImageContext | None = None,
        controls: Controls | None = None,
        conditions: Mapping[str, Tensor] | None = None,
        image_only: Tensor | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Predict the noise (or what the scheduler's prediction type says) in ``sample``.

        Args:
            sample: [N, C, T, H, W] noisy latents, with the condition's channels if any.
            timestep: one for all, or [N].
            encoder_hidden_states: [N, L, D], or [N*T, L, D] for a prompt a frame.
            down_block_additional_residuals: ControlNet's, [N*T, C, H, W] each, one for every skip
                connection, finest first.
            mid_block_additional_residual: ControlNet's, for the output of the middle stage.
            images: pictures beside the prompt, see ``IPAdapter.image_keys``.
            controls: FreeU, FreeNoise's windows, the strength of motion and deep features of an
                earlier call, see ``Controls``.
            conditions: what the ``embeddings`` take, by name: ``added_time_ids`` for SVD; ``fps``,
                ``image_latents`` and ``image_embeddings`` for I2VGen-XL.
            image_only: [N, T], true for frames that are pictures by themselves, for a model with
                ``temporal_mixing``.
            guidance: scale that a model with ``time_cond_proj_dim`` is told; None tells nothing.

        Returns:
            [N, C_out, T, H, W].

        Raises:
            InputError: a shape that does not fit this model, or more frames than ``max_frames``.
        """
        controls = controls or Controls()
        self._check_inputs(sample, encoder_hidden_states, controls)
        check_conditions(self._embeddings(), conditions or {})
        _check_image_only(image_only, sample)
        context = self._context(
            sample,
            timestep,
            encoder_hidden_states,
            conditions or {},
            guidance,
            images=images or {},
            image_only=image_only,
            controls=controls,
        )
        joined = self._embedded('channels', conditions or {}, sample)
        x = torch.cat([sample, *joined], dim=1) if joined else sample
        x = self.conv_in(x.transpose(1, 2).flatten(0, 1))  # N*T C H W
        if self.transformer_in is not None:
            x = run_module(self.transformer_in, x, context)
        deep = controls.deep
        reused = deep is not None and deep.reused
        x, skips = self._way_down(x, context, deep.depth if deep is not None and reused else None)
        if down_block_additional_residuals is not None:
            residuals = down_block_additional_residuals
            skips = _add_each(skips, residuals[: len(skips)] if reused else residuals)
        if deep is not None and deep.kept is not None:
            x = deep.kept
        else:
            x = self.mid_block(x, context.within('mid'))
            if mid_block_additional_residual is not None:
                x = x + mid_block_additional_residual
        x = self._way_up(x, skips, context)
        x = self.conv_out(self.conv_norm_out(x, context.frames, silu=True))
        return x.unflatten(0, (-1, context.frames)).transpose(1, 2)

    def _way_down(
        self, x: Tensor, context: LayerContext, most: int | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The coarsest map and the skip connections, after the first one ``most``, None for all."""
        skips = [x]
        for index, stage in enumerate(self.down_blocks):
            left = None if most is None else most + 1 - len(skips)
            x, more = stage(x, context.within(f'down.{index}'), left)
            skips += more
        return x, skips

    def _way_up(self, x: Tensor, skips: list[Tensor], context: LayerContext) -> Tensor:
        """From the middle, or from where the latest of fewer skip connections is met."""
        left_out = self.deepest + 1 - len(skips)
        for index, stage in enumerate(self._up_stages()):
            layers = len(stage.resnets)
            if left_out < layers:
                x = stage(x, skips, context.within(f'up.{index}'), index, left_out)
            left_out = max(left_out - layers, 0)
        return x

    def _context(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        text: Tensor,
        conditions: Mapping[str, Tensor],
        guidance: float | None,
        **others: Any,
    ) -> LayerContext:
        """Time embedded once a clip, text once for all frames."""
        wave = timestep_wave(timestep, sample, self.block_out_channels[0])
        told = None
        if guidance is not None:
            if self.time_cond_proj_dim is None:
                raise InputError(f'guidance={guidance}: this model is not told of any.')
            told = guidance_sinusoid(guidance, self.time_cond_proj_dim).to(wave)
        time = self.time_embedding(wave, told)
        time = sum(self._embedded('time', conditions, sample), time)
        tokens = self._embedded('tokens', conditions, sample)
        if tokens:
            rows = text.shape[0] // sample.shape[0]
            text = torch.cat([text, *(t.repeat_interleave(rows, 0) for t in tokens)], dim=1)
        return LayerContext(
            frames=sample.shape[2],
            time=nn.functional.silu(time),
            text=text,
            checkpointing=self.gradient_checkpointing,
            **others,
        )

    def _embeddings(self) -> list[nn.Module]:
        return [self.get_submodule(name) for name in self.embedding_names]

    def _embedded(
        self, role: Role, conditions: Mapping[str, Tensor], sample: Tensor
    ) -> list[Tensor]:
        return embed(self._embeddings(), role, conditions, sample)

    def _check_inputs(self, sample: Tensor, text: Tensor, controls: Controls) -> None:
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
        deep = controls.deep
        if deep is not None and not 1 <= deep.depth <= self.deepest:
            raise InputError(
                f'deep.depth={deep.depth}: expected an integer from 1 to {self.deepest}.'
            )
        if self.max_frames is not None:
            windows = controls.windows
            check_frames(frames if windows is None else windows.longest, self.max_frames)


def _check_image_only(value: Tensor | None, sample: Tensor) -> None:
    shape = (sample.shape[0], sample.shape[2])
    if value is not None and (value.dtype != torch.bool or tuple(value.shape) != shape):
        raise InputError(
            f'image_only is {value.dtype} {tuple(value.shape)}: expected torch.bool {shape}, one '
            'for each frame'
        )


def _max_frames(model: nn.Module) -> int | None:
    """The shortest limit of any motion module, None without."""
    modules = [m for m in model.modules() if isinstance(m, FrameTransformer)]
    return min((m.max_positions for m in modules if m.max_positions is not None), default=None)


def _add_each(skips: list[Tensor], residuals: Sequence[Tensor]) -> list[Tensor]:
    if len(residuals) != len(skips):
        raise InputError(
            f'{len(residuals)} down_block_additional_residuals: expected {len(skips)}, one for '
            f'each skip connection'
        )
    return [skip + residual for skip, residual in zip(skips, residuals, strict=True)]

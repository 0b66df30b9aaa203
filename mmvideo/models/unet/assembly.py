"""From a trunk's settings to its stages: checks, slots, widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from mmvideo.errors import ConfigError, nearest
from mmvideo.models.unet.attention import SpatialTransformer
from mmvideo.models.unet.context import NormScope
from mmvideo.models.unet.resnet import ResnetBlock
from mmvideo.models.unet.spatio_temporal import (
    Mixing,
    SpatioTemporalResnet,
    SpatioTemporalTransformer,
    check_mixing,
)
from mmvideo.models.unet.stages import DownStage, StageParts, TemporalSlot, UpStage
from mmvideo.registry import MODELS

# diffusers' names for a stage that mean the same here, by ending; what is temporal in a stage
# stands in settings of its own.
_KINDS = ('2D', 'Motion', 'SpatioTemporal', '3D')
# True where a stage has spatial transformers.
DOWN_BLOCKS = {f'{name}{kind}': name != 'DownBlock' for kind in _KINDS
               for name in ('CrossAttnDownBlock', 'DownBlock')}  # fmt: skip
UP_BLOCKS = {name.replace('Down', 'Up'): cross for name, cross in DOWN_BLOCKS.items()}
_TAKEN_NAMES = ('resnets', 'attentions', 'downsamplers', 'upsamplers')


def cross_attention(
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
                f'{nearest(name if name.endswith(_KINDS) else f"{name}{_KINDS[0]}", known)}'
            )
    return [known[name] for name in types]


def per_level(value: int | Sequence[int], levels: int, key: str) -> list[int]:
    """One whole number for all levels, or one for each."""
    values = [value] * levels if isinstance(value, int) else list(value)
    if len(values) != levels or not all(isinstance(v, int) and v >= 1 for v in values):
        raise ConfigError(
            f'{key}={value!r}: expected a positive whole number, or {levels}, one for each level'
        )
    return values


def per_stage(value: float | Sequence[float], levels: int, key: str) -> list[float]:
    """One number for all, or one for each down stage, the middle, each up stage and the end."""
    count = 2 * levels + 2
    values = [value] * count if isinstance(value, (int, float)) else list(value)
    if len(values) != count or not all(isinstance(v, (int, float)) and v > 0 for v in values):
        raise ConfigError(
            f'{key}={value!r}: expected a positive number, or {count}: one for each of {levels} '
            f'down stages, the middle, {levels} up stages and the output'
        )
    return values


def make_slots(
    motion_module: Mapping[str, Any] | None,
    others: Mapping[str, Mapping[str, Any]],
    norm_num_groups: int,
) -> list[TemporalSlot]:
    """In the order in which they run; a config may have other groups than the trunk."""
    configs = dict(others)
    for name, config in configs.items():
        if name in (*_TAKEN_NAMES, 'motion_modules') or not name.isidentifier():
            raise ConfigError(f'temporal_slots: {name!r} is taken or no name, choose another')
        if 'type' not in config:
            raise ConfigError(f"temporal_slots.{name} has no 'type': expected dict(type=...)")
    if motion_module is not None:
        configs['motion_modules'] = motion_module
    return [_slot(name, config, norm_num_groups) for name, config in configs.items()]


def build_temporal(config: Mapping[str, Any], channels: int, norm_num_groups: int) -> nn.Module:
    """One temporal module for a number of channels."""
    return MODELS.build({'norm_num_groups': norm_num_groups, **config, 'channels': channels})


def _slot(name: str, config: Mapping[str, Any], norm_num_groups: int) -> TemporalSlot:
    kind = MODELS.get(config['type'])

    def build(channels: int) -> nn.Module:
        return build_temporal(config, channels, norm_num_groups)

    return TemporalSlot(
        name,
        getattr(kind, 'after', 'attention'),
        build,
        getattr(kind, 'only_with_attention', False),
    )


@dataclass(frozen=True)
class LayerPlan:
    """What the layers of all stages have in common.

    Attributes:
        slots: temporal modules, in the order in which they run.
        time_channels: of the time embedding.
        context_channels: D of the prompt tokens.
        heads: of the spatial transformers, by level.
        depths: their blocks, by level.
        groups: of every GroupNorm.
        norm_scope: statistics of the resnets' norms.
        linear_projection: of the spatial transformers.
        mixing: how resnets and transformers are mixed with ones that see time; None for none.
    """

    slots: Sequence[TemporalSlot]
    time_channels: int
    context_channels: int
    heads: Sequence[int]
    depths: Sequence[int]
    groups: int = 32
    norm_scope: NormScope = 'frame'
    linear_projection: bool = False
    mixing: Mixing | None = None

    def stage(self, level: int, cross: bool, eps: float, motion: bool = True) -> StageParts:
        """A stage's parts.

        Args:
            level: of its resolution, 0 the finest.
            cross: whether it has spatial transformers.
            eps: of its resnets' norms.
            motion: whether it has motion modules, where the trunk has.
        """
        resnet_class, transformer_class, mixed = _layer_classes(self.mixing)
        resnet = partial(
            resnet_class,
            time_channels=self.time_channels,
            groups=self.groups,
            eps=eps,
            norm_scope=self.norm_scope,
            **mixed,
        )
        attention = partial(
            transformer_class,
            heads=self.heads[level],
            context_channels=self.context_channels,
            num_layers=self.depths[level],
            groups=self.groups,
            linear_projection=self.linear_projection,
            **mixed,
        )
        chosen = [slot for slot in self.slots if cross or not slot.only_with_attention]
        chosen = [slot for slot in chosen if motion or slot.name != 'motion_modules']
        return StageParts(resnet, attention if cross else None, chosen)


def _layer_classes(
    mixing: Mixing | None,
) -> tuple[type[nn.Module], type[nn.Module], dict[str, Any]]:
    """The classes of resnets and transformers, and what the mixed ones are told besides."""
    if mixing is None:
        return ResnetBlock, SpatialTransformer, {}
    check_mixing(mixing)
    return SpatioTemporalResnet, SpatioTemporalTransformer, {'mixing': mixing}


def down_stages(
    parts: Sequence[StageParts], widths: Sequence[int], layers: Sequence[int]
) -> nn.ModuleList:
    """Finest first; all but the last halve the size."""
    before = (widths[0], *widths)
    last = len(widths) - 1
    return nn.ModuleList(
        DownStage(part, before[i], widths[i], layers[i], downsample=i < last)
        for i, part in enumerate(parts)
    )


def skip_channels(widths: Sequence[int], layers: Sequence[int]) -> list[int]:
    """Channels of the skip connections, finest first."""
    channels = [widths[0]]
    for i, width in enumerate(widths):
        channels += [width] * (layers[i] + (i < len(widths) - 1))
    return channels


def up_stages(
    parts: Sequence[StageParts], widths: Sequence[int], layers: Sequence[int]
) -> nn.ModuleList:
    """Coarsest first; each meets, from the end, the skip connections of the way down."""
    skips = skip_channels(widths, layers)
    stages, channels = nn.ModuleList(), widths[-1]
    for i, part in enumerate(parts):
        level = len(widths) - 1 - i
        taken = [skips.pop() for _ in range(layers[level] + 1)]
        stages.append(UpStage(part, channels, widths[level], taken, upsample=level > 0))
        channels = widths[level]
    return stages


def check_told(width: int | None) -> None:
    """Raise ConfigError for a sinusoid of the guidance that cannot be."""
    if width is not None and (not isinstance(width, int) or width < 4 or width % 2):
        raise ConfigError(f'time_cond_proj_dim={width!r}: expected an even number from 4, or None')


def check_motion(widths: Sequence[int], config: Mapping[str, Any] | None, mid_block: bool) -> None:
    """Raise ConfigError for widths or motion settings that cannot be right."""
    if not widths or widths[0] % 2:
        raise ConfigError(f'block_out_channels={widths}: expected an even number first')
    if config is None and mid_block:
        raise ConfigError(
            'motion_mid_block=True without a motion_module: add motion_module=dict('
            "type='MotionModule'), or drop motion_mid_block"
        )
    if config is not None and 'type' not in config:
        raise ConfigError("motion_module has no 'type': expected dict(type='MotionModule', ...)")

"""Stages of the trunk: layers at one resolution, in three arrangements over the same code.

A layer is a resnet, perhaps followed by a spatial transformer. Temporal modules stand in slots
after the one or the other, so each video family is this trunk with other slots:

    AnimateDiff, PIA   motion_modules after the transformer
    I2VGen-XL          temp_convs after the resnet, temp_attentions after the transformer
    SVD                no slots: its resnets and transformers are mixed ones, in their places

Parameter names are diffusers': ``resnets.j``, ``attentions.j``, one list a slot,
``downsamplers.0``, ``upsamplers.0``.

Shapes: N batch, T frames, C channels, H W latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmvideo.models.unet.context import LayerContext
from mmvideo.models.unet.resnet import Downsample, Upsample

# Every layer module is called as module(x, context) with x [N*T, C, H, W].
LayerFactory = Callable[[int], nn.Module]
ResnetFactory = Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class TemporalSlot:
    """A place for temporal modules in each layer of a stage.

    Attributes:
        name: of the module list, hence of its parameters.
        after: whether the module follows the resnet or, where there is one, the transformer.
        build: makes the module for a number of channels.
        only_with_attention: whether it stands only in layers that have a transformer.
    """

    name: str
    after: Literal['resnet', 'attention']
    build: LayerFactory
    only_with_attention: bool = False


@dataclass(frozen=True)
class StageParts:
    """What the layers of a stage are made of.

    Attributes:
        resnet: makes the resnet for channels in and out.
        attention: makes the spatial transformer for a number of channels; None for none.
        slots: temporal modules, in the order in which they run.
    """

    resnet: ResnetFactory
    attention: LayerFactory | None = None
    slots: Sequence[TemporalSlot] = field(default_factory=tuple)


def run_module(module: nn.Module, x: Tensor, context: LayerContext) -> Tensor:
    """``module(x, context)``, recomputed in the backward pass if the context asks for it."""
    if context.checkpointing and torch.is_grad_enabled():
        return checkpoint(module, x, context, use_reentrant=False)
    return module(x, context)


class Stage(nn.Module):
    """Layers at one resolution and the order in which their modules run."""

    def __init__(self, parts: StageParts, widths: Sequence[tuple[int, int]]) -> None:
        """Build one layer for each (channels in, channels out) of ``widths``."""
        super().__init__()
        self.resnets = nn.ModuleList(parts.resnet(*width) for width in widths)
        channels = [out for _, out in widths]
        if parts.attention is not None:
            self.attentions = nn.ModuleList(map(parts.attention, channels))
        for slot in parts.slots:
            self.add_module(slot.name, nn.ModuleList(map(slot.build, channels)))
        self.after_resnet = _names(parts, 'resnet')
        self.after_attention = _names(parts, 'attention')

    def run(self, kinds: Sequence[str], index: int, x: Tensor, context: LayerContext) -> Tensor:
        """Run module ``index`` of each list in ``kinds``, recomputed in backward if asked to."""
        for kind in kinds:
            x = run_module(getattr(self, kind)[index], x, context)
        return x

    def layer(self, index: int, x: Tensor, context: LayerContext) -> Tensor:
        """Layer ``index``: [N*T, C, H, W] -> [N*T, C_out, H, W]."""
        return self.run((*self.after_resnet, *self.after_attention), index, x, context)


def _names(parts: StageParts, after: str) -> tuple[str, ...]:
    """The module lists that run one after the other, the resnet or transformer first."""
    slots = tuple(slot.name for slot in parts.slots if slot.after == after)
    if after == 'resnet':
        return ('resnets', *slots)
    return slots if parts.attention is None else ('attentions', *slots)


class DownStage(Stage):
    """Layers, each giving a skip connection, then half the size."""

    def __init__(
        self, parts: StageParts, in_channels: int, channels: int, layers: int, downsample: bool
    ) -> None:
        super().__init__(parts, [(in_channels, channels)] + [(channels, channels)] * (layers - 1))
        self.downsamplers = nn.ModuleList([Downsample(channels)] if downsample else [])

    def forward(
        self, x: Tensor, context: LayerContext, most: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """[N*T, C, H, W] -> the output and the skip connections, finest first.

        ``most`` is how many of them are computed at most, None for all.
        """
        skips = []
        for index in range(len(self.resnets))[:most]:
            x = self.layer(index, x, context)
            skips.append(x)
        for downsampler in self.downsamplers if most is None or most > len(skips) else ():
            x = downsampler(x)
            skips.append(x)
        return x, skips


class MidStage(Stage):
    """A resnet, then a transformer with its slots, then a resnet."""

    def __init__(self, parts: StageParts, channels: int) -> None:
        super().__init__(parts, [(channels, channels)])
        self.resnets.append(parts.resnet(channels, channels))
        for slot in parts.slots:
            if slot.after == 'resnet':
                modules = self.get_submodule(slot.name)
                assert isinstance(modules, nn.ModuleList)
                modules.append(slot.build(channels))

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """[N*T, C, H, W] -> [N*T, C, H, W]."""
        x = self.run(self.after_resnet, 0, x, context)
        x = self.run(self.after_attention, 0, x, context)
        return self.run(self.after_resnet, 1, x, context)


class UpStage(Stage):
    """Layers, each taking the latest skip connection, then the size of the next one."""

    def __init__(
        self,
        parts: StageParts,
        in_channels: int,
        channels: int,
        skip_channels: Sequence[int],
        upsample: bool,
    ) -> None:
        widths = [
            ((in_channels if j == 0 else channels) + skip, channels)
            for j, skip in enumerate(skip_channels)
        ]
        super().__init__(parts, widths)
        self.upsamplers = nn.ModuleList([Upsample(channels)] if upsample else [])

    def forward(
        self,
        x: Tensor,
        skips: list[Tensor],
        context: LayerContext,
        stage: int = 0,
        first: int = 0,
    ) -> Tensor:
        """[N*T, C, H, W] -> [N*T, C_out, 2H, 2W], taking skip connections off the end of ``skips``.

        The size is that of the next skip connection, so odd sizes come back as they went.
        ``stage`` is the position of this one, coarsest first, for ``Controls.join``; ``first`` is
        the layer to begin with.
        """
        deep = context.controls.deep
        for index in range(first, len(self.resnets)):
            if deep is not None and not deep.reused and len(skips) == deep.depth + 1:
                deep.keep(x)
            skip = skips.pop()
            if context.controls.join is not None:
                x, skip = context.controls.join(stage, x, skip)
            x = self.layer(index, torch.cat([x, skip], dim=1), context)
        for upsampler in self.upsamplers:
            x = upsampler(x, size=skips[-1].shape[-2:])
        return x

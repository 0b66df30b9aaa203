"""What every layer of the trunk is told besides its input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from mmvideo.errors import ConfigError, nearest

NormScope = Literal['frame', 'clip']
NORM_SCOPES = ('frame', 'clip')


@dataclass(frozen=True)
class ImageKeys:
    """Pictures as one cross-attention layer sees them beside the prompt (IP-Adapter).

    They are the same in every step, so who samples projects them once.

    Attributes:
        k: [N*F, L, heads, d]; F is 1 where the frames of a clip share the pictures, else T.
        v: likewise, with the scale multiplied in.
        frames: F.
        mask: where the picture counts, [1 or T, P, 1] for the places of this layer; None is
            everywhere.
    """

    k: Tensor
    v: Tensor
    frames: int = 1
    mask: Tensor | None = None

    def select(self, frames: Tensor, device: torch.device | None = None) -> ImageKeys:
        """For a part of the clip: ``frames`` [S], indices below T; on ``device`` where given."""

        def chosen(x: Tensor) -> Tensor:
            return x.unflatten(0, (-1, self.frames))[:, frames.to(x.device)].flatten(0, 1)

        k, v, mask, count = self.k, self.v, self.mask, self.frames
        if count > 1:
            k, v, count = chosen(k), chosen(v), len(frames)
        if mask is not None and len(mask) > 1:
            mask = mask[frames.to(mask.device)]
        if device is not None:
            k, v, mask = k.to(device), v.to(device), None if mask is None else mask.to(device)
        return ImageKeys(k, v, count, mask)

    def waiting(self) -> ImageKeys:
        """With what differs from frame to frame in main memory, for ``select`` to take from."""
        k, v, mask = self.k, self.v, self.mask
        if self.frames > 1:
            k, v = k.cpu(), v.cpu()
        if mask is not None and len(mask) > 1:
            mask = mask.cpu()
        return replace(self, k=k, v=v, mask=mask)


# The pictures of each cross-attention layer; a layer without any is not in it.
ImageContext = Mapping[nn.Module, Sequence[ImageKeys]]


class FrameWindows(Protocol):
    """Windows of frames, such as ``mmvideo.diffusion.windows.WindowPlan``."""

    @property
    def longest(self) -> int:
        """Frames of the longest window."""

    def fuse(self, function: Callable[[Tensor, Tensor], Tensor], x: Tensor, dim: int) -> Tensor:
        """``function(part, frames)`` of each window's part of ``x`` along ``dim``, joined."""


@dataclass(frozen=True)
class DeepFeatures:
    """What a call of the trunk computes below its first layers, kept from an earlier one.

    Attributes:
        depth: skip connections after the first that are computed in every call.
        kept: [N*T, C, H, W] of an earlier call; None runs the whole trunk.
        keep: told those of a whole run.
    """

    depth: int
    kept: Tensor | None
    keep: Callable[[Tensor], None]

    @property
    def reused(self) -> bool:
        """Whether most of the trunk is left out."""
        return self.kept is not None


@dataclass(frozen=True)
class Controls:
    """What a call of the trunk may change in its layers, beside its inputs.

    Blocks are named ``'down.0'``, ``'mid'``, ``'up.1'`` ...

    Attributes:
        join: ``(up stage, x, skip) -> (x, skip)`` before an up stage joins the two (FreeU).
        windows: motion modules attend inside each window and join the results (FreeNoise).
        motion_scale: by block, [T]: factor on the queries of the temporal attention, whose frames
            then mix less (above 1) or more (below 1).
        motion_strength: by block, [T]: factor on what the motion modules add to a frame.
        deep: deep features to keep or to use (DeepCache); None runs the trunk as it is.
    """

    join: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    windows: FrameWindows | None = None
    motion_scale: Mapping[str, Tensor] = field(default_factory=dict)
    motion_strength: Mapping[str, Tensor] = field(default_factory=dict)
    deep: DeepFeatures | None = None

    def at(self, frames: Tensor) -> Controls:
        """The controls of some frames of the clip, by their indices [t]."""

        def chosen(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {block: f[frames.to(f.device)] for block, f in factors.items()}

        return replace(
            self,
            motion_scale=chosen(self.motion_scale),
            motion_strength=chosen(self.motion_strength),
        )


@dataclass(frozen=True)
class LayerContext:
    """The side inputs of one call of the trunk, the same for each of its layers.

    Attributes:
        frames: T; layers see [N*T, C, H, W] with the frames of a clip adjacent.
        time: [N, E] time embedding, already through SiLU; one row a clip.
        text: [N, L, D] prompt tokens, or [N*T, L, D] for a prompt a frame.
        checkpointing: recompute each layer in the backward pass instead of keeping its insides.
        images: the pictures that cross-attention layers see beside the prompt.
        image_only: [N, T], true for frames that are pictures by themselves, which temporal mixing
            leaves alone; None for none.
        controls: see ``Controls``.
        block: name of the block that the layer is in.
    """

    frames: int = 1
    time: Tensor | None = None
    text: Tensor | None = None
    checkpointing: bool = False
    images: ImageContext = field(default_factory=dict)
    image_only: Tensor | None = None
    controls: Controls = Controls()
    block: str = ''

    def within(self, block: str) -> LayerContext:
        """The same context for the layers of a block."""
        return replace(self, block=block)

    @property
    def motion_scale(self) -> Tensor | None:
        """[T] of this block; None where nothing changes."""
        return self.controls.motion_scale.get(self.block)

    @property
    def motion_strength(self) -> Tensor | None:
        """[T] of this block; None where nothing changes."""
        return self.controls.motion_strength.get(self.block)


def check_norm_scope(value: str, key: str) -> None:
    """Raise ConfigError unless ``value`` is a norm scope."""
    if value not in NORM_SCOPES:
        raise ConfigError(
            f'{key}={value!r}: expected one of {NORM_SCOPES}.{nearest(value, NORM_SCOPES)}'
        )


def check_divides(divisor: int, channels: int, key: str) -> None:
    """Raise ConfigError unless ``divisor``, the value of ``key``, divides ``channels``."""
    if divisor < 1 or channels % divisor:
        near = [d for d in range(1, channels + 1) if channels % d == 0]
        best = min(near, key=lambda d: abs(d - divisor))
        raise ConfigError(
            f'{key}={divisor} does not divide {channels} channels; the nearest divisor is {best}'
        )

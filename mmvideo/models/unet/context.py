"""What every layer of the trunk is told besides its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mmvideo.errors import ConfigError, nearest

NormScope = Literal['frame', 'clip']
NORM_SCOPES = ('frame', 'clip')


@dataclass(frozen=True)
class LayerContext:
    """The side inputs of one call of the trunk, the same for each of its layers.

    Attributes:
        frames: T; layers see [N*T, C, H, W] with the frames of a clip adjacent.
        time: [N, E] time embedding, already through SiLU; one row a clip.
        text: [N, L, D] prompt tokens, or [N*T, L, D] for a prompt a frame.
        checkpointing: recompute each layer in the backward pass instead of keeping its insides.
    """

    frames: int = 1
    time: Tensor | None = None
    text: Tensor | None = None
    checkpointing: bool = False


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

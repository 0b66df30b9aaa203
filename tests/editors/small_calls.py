"""What the tests of editors share: short calls, pictures and clips of noise, distances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def caller(found: str = 'samples', **usual: Any) -> Callable[..., Tensor]:
    """A function of an editor and arguments of ``infer`` that gives one thing of its result.

    Args:
        found: the result's key.
        usual: arguments where the call gives no others.
    """

    def make(editor: Any, *args: Any, **arguments: Any) -> Tensor:
        return editor.infer(*args, **{**usual, **arguments})[found]

    return make


def picture(seed: int = 1) -> Tensor:
    """[3, 16, 16] in [0, 1]."""
    return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed))


def pictures(count: int) -> list[Tensor]:
    """Different ones, each as ``picture``."""
    return list(torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)))


def clip(seed: int = 0, count: int = 4, side: int = 16) -> Tensor:
    """[count, 3, side, side] in [0, 1], in steps of 1/255 as a file has them."""
    values = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return (values * 255).round() / 255


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    assert one.shape == other.shape
    return float((one - other).abs().max())

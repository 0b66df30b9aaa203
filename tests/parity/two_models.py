"""What tests that hold our model beside another's have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def randomised(module: nn.Module) -> Any:
    """No parameter at a value that hides it, such as a bias or a last convolution of 0."""
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def disturb(module: nn.Module) -> Any:
    """The module; its biases and norms start at 0 and 1, where a mistake would not show."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two tensors of one shape."""
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()

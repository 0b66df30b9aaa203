"""The gated linear unit with a GELU gate (Shazeer, "GLU Variants Improve Transformer", 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def geglu(x: Tensor) -> Tensor:
    """First half of the channels times the GELU of the second: [..., 2D] -> [..., D]."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)

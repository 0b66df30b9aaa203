"""Scaled dot-product attention that no batch size can break."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# CUDA puts the batch and the heads on the y and z axes of the launch grid, which end at 65,535;
# beyond it fused attention fails with "invalid configuration argument" (pytorch#142228).
MAX_GRID = 65_535
# On a CPU in bf16, fused attention is slower than two products while the scores are small; its
# backward pass by a factor of 3 to 5 (64 tokens, head sizes 24 and 32).
SMALL_SCORES = 256 * 256


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v``.

    Args:
        q: [B, heads, Lq, d]; any strides, so views cost nothing.
        k: [B, heads, Lk, d].
        v: [B, heads, Lk, d].

    Returns:
        [B, heads, Lq, d].
    """
    for dim in (0, 1):
        if q.shape[dim] > MAX_GRID:
            parts = zip(*(x.split(MAX_GRID, dim) for x in (q, k, v)), strict=True)
            return torch.cat([attention(*part) for part in parts], dim)
    if _products_are_faster(q, k):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return scores.softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


def _products_are_faster(q: Tensor, k: Tensor) -> bool:
    small = q.shape[-2] * k.shape[-2] <= SMALL_SCORES
    return small and q.device.type == 'cpu' and q.dtype is torch.bfloat16

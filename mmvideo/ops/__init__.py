"""Operators of the trunk: one public function a file, each with a torch reference.

A fused kernel goes behind the same function, chosen by device and dtype; the reference stays, runs
anywhere and is what the kernel is tested against. This package imports torch only.
"""

from __future__ import annotations

from mmvideo.ops.attention import attention
from mmvideo.ops.geglu import geglu
from mmvideo.ops.group_norm import scoped_group_norm
from mmvideo.ops.temporal_attention import temporal_attention

__all__ = ['attention', 'geglu', 'scoped_group_norm', 'temporal_attention']

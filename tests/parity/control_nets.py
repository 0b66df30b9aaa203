"""Small control networks: arguments of diffusers' classes."""

from __future__ import annotations

from typing import Any

WIDTHS, TEXT = (8, 16), 12
SHARED: dict[str, Any] = dict(
    block_out_channels=WIDTHS,
    layers_per_block=2,
    cross_attention_dim=TEXT,
    attention_head_dim=2,
    norm_num_groups=4,
)
CONTROL = dict(
    SHARED,
    down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
    conditioning_embedding_out_channels=(4, 8),
)
SPARSE = dict(
    SHARED,
    down_block_types=('CrossAttnDownBlockMotion', 'DownBlockMotion'),
    motion_num_attention_heads=2,
    motion_max_seq_length=8,
)
SCRIBBLE = dict(
    SPARSE,
    conditioning_channels=3,
    use_simplified_condition_embedding=False,
    conditioning_embedding_out_channels=(4, 8),
)

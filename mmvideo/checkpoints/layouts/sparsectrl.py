"""SparseCtrl: AnimateDiff's encoder for sketches or pictures on some of the frames.

Its motion modules have one temporal attention; the rest has diffusers' names already.

Source of the names: guoyww/AnimateDiff animatediff/models/sparse_controlnet.py, diffusers
SparseControlNetModel (ours).
"""

from __future__ import annotations

from mmvideo.checkpoints.layouts.motion import motion_rows
from mmvideo.checkpoints.layouts.table import Layout, Row

_SAME = (
    'conv_in.{kind}',
    'controlnet_cond_embedding.{kind}',
    'controlnet_cond_embedding.{name}.{kind}',
    'time_embedding.{name}.{kind}',
    '{stage}.resnets.{path}.{kind}',
    '{stage}.attentions.{path}.{kind}',
    'down_blocks.{layer}.downsamplers.{path}.{kind}',
    'controlnet_down_blocks.{layer}.{kind}',
    'controlnet_mid_block.{kind}',
)
SPARSECTRL = Layout(
    'a SparseCtrl encoder',
    (*motion_rows(attentions=1), *(Row(name, name) for name in _SAME)),
    {
        'name': r'conv_in|conv_out|blocks\.\d+|linear_[12]',
        'stage': r'down_blocks\.\d+|mid_block',
        'path': r'[\w.]+',
    },
)

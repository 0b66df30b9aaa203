"""I2VGen-XL's network in one file: the names of VGen.

They are those of Stable Diffusion's UNet with temporal layers in their places, so the table follows
from its. The file holds the network alone, under ``state_dict``.

Source of the names: ali-vilab/VGen tools/modules/unet/{unet_i2vgen,util}.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from mmvideo.checkpoints.layouts import ldm
from mmvideo.checkpoints.layouts.svd import TRANSFORMER, resnets, transformers
from mmvideo.checkpoints.layouts.table import Change, Layout, Row
from mmvideo.errors import WeightsError

_KINDS = ('weight', 'bias')
# Where a convolution's layers stand: the first has no dropout before it.
_TEMPORAL_CONV = ('conv1.0', 'conv1.2', *(f'conv{i}.{j}' for i in (2, 3, 4) for j in (0, 3)))
_ENCODER, _OUR_ENCODER = 'local_temporal_encoder.layers.0', 'image_latents_temporal_encoder'
# Modules at the root, theirs to ours, and which of their layers have weights.
_ROOT = (
    ('context_embedding', 'context_embedding', (0, 2)),
    ('fps_embedding', 'fps_embedding', (0, 2)),
    ('local_image_concat', 'image_latents_proj_in', (0, 2, 4)),
    ('local_image_embedding', 'image_latents_context_embedding', (0, 3, 5)),
)
# Temporal transformers project by convolutions of size 1 over frames.
_CONVOLUTION = Change(
    to_ours=lambda value: value[:, :, 0] if value.ndim == 3 else value,
    to_theirs=lambda value: value[:, :, None] if value.ndim == 2 else value,
)


def _rows() -> Iterator[Row]:
    for row in ldm.UNET.rows:
        yield Row(_theirs(row.theirs), row.ours, change=row.change)
    for theirs, ours in resnets(ldm.UNET).items():
        convolution = ours.replace('.resnets.', '.temp_convs.')
        for layer in _TEMPORAL_CONV:
            # the misspelling is the file's
            yield from _layer(f'{_theirs(theirs)}.temopral_conv.{layer}', f'{convolution}.{layer}')
    yield from _temporal_transformer('input_blocks.0.1', 'transformer_in')
    for theirs, ours in transformers(ldm.UNET).items():
        place = re.sub(r'\.1$', '.2', theirs)
        yield from _temporal_transformer(place, ours.replace('.attentions.', '.temp_attentions.'))
    for theirs, ours, layers in _ROOT:
        for index in layers:
            yield from _layer(f'{theirs}.{index}', f'{ours}.{index}')
    yield from _local_encoder()


def _theirs(name: str) -> str:
    """Stable Diffusion's place of a layer as VGen's: temporal transformers come in between."""
    name = re.sub(r'^(input_blocks\.\d+)\.0\.op\.', r'\1.op.', name)
    name = re.sub(r'^(output_blocks\.\d+)\.2\.conv\.', r'\1.3.conv.', name)
    return re.sub(r'^middle_block\.2(?=\.|$)', 'middle_block.3', name)


def _layer(theirs: str, ours: str) -> Iterator[Row]:
    yield from (Row(f'{theirs}.{kind}', f'{ours}.{kind}') for kind in _KINDS)


def _temporal_transformer(theirs: str, ours: str) -> Iterator[Row]:
    for name in TRANSFORMER:
        projects = name in ('proj_in.weight', 'proj_out.weight')
        yield Row(f'{theirs}.{name}', f'{ours}.{name}', change=_CONVOLUTION if projects else None)


def _local_encoder() -> Iterator[Row]:
    yield from _layer(f'{_ENCODER}.0.norm', f'{_OUR_ENCODER}.norm1')
    yield Row(
        f'{_ENCODER}.0.fn.to_qkv.weight',
        f'{_OUR_ENCODER}.attn1.{{part}}.weight',
        parts=('to_q', 'to_k', 'to_v'),
    )
    yield from _layer(f'{_ENCODER}.0.fn.to_out.0', f'{_OUR_ENCODER}.attn1.to_out.0')
    yield from _layer(f'{_ENCODER}.1.net.0.0', f'{_OUR_ENCODER}.ff.net.0.proj')
    yield from _layer(f'{_ENCODER}.1.net.2', f'{_OUR_ENCODER}.ff.net.2')


UNET = Layout("I2VGen-XL's network (VGen)", tuple(_rows()))


def describe_i2vgen(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The ``config.json`` that tensors in our names imply, completed by I2VGen-XL's own.

    Raises:
        WeightsError: A tensor that tells a width is missing.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise WeightsError(f'{source}: the unet has no {name}; the file is not complete')
        return tuple(tensors[name].shape)

    return dict(
        _class_name='I2VGenXLUNet',
        sample_size=32,
        in_channels=shape('conv_in.weight')[1] // 2,
        out_channels=shape('conv_out.weight')[0],
        down_block_types=['CrossAttnDownBlock3D'] * 3 + ['DownBlock3D'],
        up_block_types=['UpBlock3D'] + ['CrossAttnUpBlock3D'] * 3,
        block_out_channels=[shape(f'down_blocks.{i}.resnets.0.conv1.weight')[0] for i in range(4)],
        layers_per_block=2,
        norm_num_groups=32,
        cross_attention_dim=shape('context_embedding.0.weight')[1],
        # the first transformer has 8 heads whatever its channels
        attention_head_dim=shape('transformer_in.proj_in.weight')[0] // 8,
    )

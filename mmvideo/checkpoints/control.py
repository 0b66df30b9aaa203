"""ControlNet and SparseCtrl from any public file or folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmvideo.checkpoints.files import read_json, read_tensors
from mmvideo.checkpoints.layouts import FAMILIES, SPARSECTRL, is_original, position_count, recognise
from mmvideo.checkpoints.layouts.controlnet import controlnet_to_ours
from mmvideo.errors import WeightsError

SPARSE = ('sparsectrl_rgb', 'sparsectrl_scribble')
CONTROL_FAMILIES = ('controlnet', 'controlnet_ldm', *SPARSE)
_EMBEDDING = 'controlnet_cond_embedding.'
_HEADS, _HEAD_CHANNELS, _SD15_CONTEXT = 8, 64, 768


@dataclass(frozen=True)
class ControlWeights:
    """An encoder for control pictures.

    Attributes:
        config: In the form of diffusers' ``config.json``.
        family: A key of ``FAMILIES``.
        tensors: In diffusers' names.
    """

    config: dict[str, Any]
    family: str
    tensors: dict[str, Tensor]

    @property
    def sparse(self) -> bool:
        """Whether it is SparseCtrl's."""
        return self.family in SPARSE


def read_control(path: Path, config: Path | None = None) -> ControlWeights:
    """Read a ControlNet or SparseCtrl in the original layout or diffusers'.

    Args:
        path: The weight file.
        config: The ``config.json`` that belongs to it; None takes what the tensors tell, and for
            heads what all published ones for Stable Diffusion have.

    Raises:
        WeightsError: The file holds something else.
    """
    tensors = read_tensors(path)
    family = recognise(tensors)
    if family not in CONTROL_FAMILIES:
        raise WeightsError(
            f'{path} is {FAMILIES[family].title}, expected a ControlNet or a SparseCtrl encoder'
        )
    if family == 'controlnet_ldm':
        tensors = controlnet_to_ours(tensors)
    elif family in SPARSE and is_original(tensors):
        tensors = SPARSECTRL.to_ours(tensors)
    found = describe_control(tensors, str(path)) if config is None else read_json(config)
    return ControlWeights(found, family, dict(tensors))


def describe_control(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The ``config.json`` that tensors in diffusers' names imply.

    Raises:
        WeightsError: A tensor that tells a width is missing.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise WeightsError(f'{source} has no {name}; the file is not complete')
        return tuple(tensors[name].shape)

    levels = len({key.split('.')[1] for key in tensors if key.startswith('down_blocks.')})
    widths = [shape(f'down_blocks.{i}.resnets.0.conv1.weight')[0] for i in range(levels)]
    cross = [f'down_blocks.{i}.attentions.0.norm.weight' in tensors for i in range(levels)]
    layers = {k.split('.')[3] for k in tensors if k.startswith('down_blocks.0.resnets.')}
    context = shape('mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight')[1]
    sparse = any('.motion_modules.' in key for key in tensors)
    kind = 'Motion' if sparse else '2D'
    heads = _HEADS if context <= _SD15_CONTEXT else [max(1, w // _HEAD_CHANNELS) for w in widths]
    config: dict[str, Any] = {
        '_class_name': 'SparseControlNetModel' if sparse else 'ControlNetModel',
        'in_channels': shape('conv_in.weight')[1],
        'down_block_types': [f'{"CrossAttn" if c else ""}DownBlock{kind}' for c in cross],
        'block_out_channels': widths,
        'layers_per_block': len(layers),
        'cross_attention_dim': context,
        'attention_head_dim': heads,
        'use_linear_projection': len(shape('mid_block.attentions.0.proj_in.weight')) == 2,
    }
    simple = f'{_EMBEDDING}weight' in tensors
    first = shape(_EMBEDDING + ('weight' if simple else 'conv_in.weight'))[1]
    config['conditioning_channels'] = first - sparse  # SparseCtrl's mask is joined to the picture
    if sparse:
        config |= {
            'motion_max_seq_length': position_count(tensors),
            'concat_conditioning_mask': True,
            'use_simplified_condition_embedding': simple,
        }
    if not simple:
        config['conditioning_embedding_out_channels'] = _embedding_widths(tensors, shape)
    return config


def _embedding_widths(tensors: Mapping[str, Tensor], shape: Any) -> list[int]:
    count = len({k.split('.')[2] for k in tensors if k.startswith(f'{_EMBEDDING}blocks.')})
    widths = [shape(f'{_EMBEDDING}blocks.{i}.weight')[0] for i in range(0, count, 2)]
    return [*widths, shape(f'{_EMBEDDING}conv_out.weight')[1]]

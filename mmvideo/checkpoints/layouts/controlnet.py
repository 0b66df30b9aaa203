"""ControlNet for Stable Diffusion 1.x in the names of its original code.

The public files put ``control_model.`` before every name, and some hold a whole Stable Diffusion
beside it.

Source of the names: lllyasviel/ControlNet cldm/cldm.py, diffusers ControlNetModel (ours).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from mmvideo.checkpoints.layouts.ldm import encoder_rows
from mmvideo.checkpoints.layouts.table import Layout, Row

_PREFIX = 'control_model.'
_HINTS = ('conv_in', *(f'blocks.{i}' for i in range(6)), 'conv_out')


def _rows() -> Iterator[Row]:
    """340 keys."""
    yield from encoder_rows()
    pairs = {f'input_hint_block.{2 * i}': f'controlnet_cond_embedding.{name}'
             for i, name in enumerate(_HINTS)}  # fmt: skip
    pairs |= {f'zero_convs.{i}.0': f'controlnet_down_blocks.{i}' for i in range(12)}
    pairs['middle_block_out.0'] = 'controlnet_mid_block'
    for theirs, ours in pairs.items():
        yield from (Row(f'{theirs}.{kind}', f'{ours}.{kind}') for kind in ('weight', 'bias'))


CONTROLNET = Layout('a ControlNet', tuple(_rows()))


def controlnet_to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ControlNet of a file in the original names, in diffusers'."""
    own = {k.removeprefix(_PREFIX): v for k, v in tensors.items() if k.startswith(_PREFIX)}
    return CONTROLNET.to_ours(own or tensors)


def controlnet_to_theirs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ControlNet in diffusers' names, in those of the public files, which have the prefix."""
    return {_PREFIX + key: value for key, value in CONTROLNET.to_theirs(tensors).items()}


def beside_controlnet(tensors: Mapping[str, Tensor]) -> list[str]:
    """Keys of a file that belong to a model beside the ControlNet."""
    own = any(key.startswith(_PREFIX) for key in tensors)
    return [key for key in tensors if own and not key.startswith(_PREFIX)]

"""Motion modules from any public file or folder, and PIA's first convolution.

Shapes: C channels of a level, P frame positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmvideo.checkpoints.files import read_json, read_tensors
from mmvideo.checkpoints.layouts import (
    ANIMATEDIFF,
    FAMILIES,
    MOTION_FAMILIES,
    Betas,
    is_published,
    position_count,
    recognise,
)
from mmvideo.checkpoints.load import read_files
from mmvideo.checkpoints.sources import DIFFUSERS_FILES, resolve, resolve_weights, weight_file
from mmvideo.errors import WeightsError

_ANIMATELCM_POSITIONS = 64
_CONV = ('conv_in.weight', 'conv_in.bias')


@dataclass(frozen=True)
class MotionWeights:
    """Motion modules, and for PIA the convolution of its condition.

    Attributes:
        config: In the form of a MotionAdapter's ``config.json``.
        family: A key of ``FAMILIES``.
        tensors: In diffusers' names, without ``conv_in``.
        conv_in: Weight [C, 9, 3, 3] and bias [C] of a PIA file, else None.
        image: The image layers, of a file that holds a whole UNet.
        paths: The files read.
    """

    config: dict[str, Any]
    family: str
    tensors: dict[str, Tensor]
    conv_in: tuple[Tensor, Tensor] | None = None
    image: dict[str, Tensor] = field(default_factory=dict)
    paths: tuple[Path, ...] = ()

    @property
    def max_positions(self) -> int:
        """The most frames that the positions allow."""
        return self.config['motion_max_seq_length']

    @property
    def mid_block(self) -> bool:
        """Whether there is a motion module in the middle."""
        return self.config['use_motion_mid_block']

    @property
    def conv_in_channels(self) -> int | None:
        """Input channels of PIA's convolution."""
        return self.config['conv_in_channels']

    @property
    def norm_scopes(self) -> dict[str, str]:
        """``resnet_norm_scope`` and ``motion_norm_scope``, where the family tells them."""
        return FAMILIES[self.family].norm_scopes

    @property
    def betas(self) -> Betas | None:
        """The noise schedule that published weights were trained with; None for others."""
        known = is_published(self.family, self.config['block_out_channels'])
        return FAMILIES[self.family].betas if known else None


def read_motion(
    source: str | Path,
    subfolder: str | None = None,
    *,
    variant: str | None = None,
    revision: str | None = None,
    max_positions: int | None = None,
    image_layers: bool = False,
) -> MotionWeights:
    """Read motion modules in the original or diffusers' layout.

    Args:
        source: A file such as ``mm_sd_v15_v2.ckpt`` or ``pia.ckpt``; or a folder, hub id,
            ``package://NAME`` or ``catalog://NAME`` with a MotionAdapter.
        subfolder: Folder inside the source.
        variant: Which files of the source, such as 'fp16'.
        revision: Branch, tag or commit on the hub.
        max_positions: Frame positions, for a file that carries no encodings.
        image_layers: Whether the caller also uses ``image``; else a file of a whole UNet is
            refused, because its image layers may have been trained too.

    Returns:
        The modules. Heads and groups stand in no tensor: a single file gets the 8 and 32 that all
        published ones have.

    Raises:
        WeightsError: The file holds something else, or contradicts its ``config.json``.
    """
    single = weight_file(source, revision)
    config: dict[str, Any] = {}
    if single is not None:
        paths, tensors = [single], read_tensors(single)
    else:
        where = {'subfolder': subfolder, 'revision': revision}
        config = read_json(resolve(source, filenames=('config.json',), **where))
        paths = resolve_weights(source, filenames=DIFFUSERS_FILES, variant=variant, **where)
        tensors = read_files(paths)
    weights = split_motion(tensors, config, str(source), max_positions, tuple(paths))
    if weights.image and not image_layers:
        raise WeightsError(
            f'{source} is {FAMILIES[weights.family].title}, with {len(weights.image)} image layers '
            'that would be lost; expected motion modules alone'
        )
    return weights


def split_motion(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    source: str = 'these tensors',
    max_positions: int | None = None,
    paths: tuple[Path, ...] = (),
) -> MotionWeights:
    """``read_motion`` for tensors that are already read."""
    family = recognise(tensors)
    if family not in MOTION_FAMILIES:
        raise WeightsError(f'{source} is {FAMILIES[family].title}, expected motion modules')
    motion = {k: v for k, v in tensors.items() if '.motion_modules.' in k}
    if any('.temporal_transformer.' in key for key in motion):
        motion = ANIMATEDIFF.to_ours(motion)
    conv, image = _image_layers(tensors, family, source)
    stated = dict(config or {})
    if stated.get('_class_name', 'MotionAdapter') != 'MotionAdapter':
        stated = {k: v for k, v in stated.items() if k in ('motion_num_attention_heads',)}
    positions = _positions(motion, family, stated, max_positions, source)
    described = describe(motion, conv, positions)
    _fill_positions(motion, positions)
    return MotionWeights(_agreed(stated, described, source), family, motion, conv, image, paths)


def describe(
    motion: Mapping[str, Tensor], conv_in: tuple[Tensor, Tensor] | None, positions: int
) -> dict[str, Any]:
    """The MotionAdapter config that tensors in diffusers' names imply."""
    downs = sorted({int(k.split('.')[1]) for k in motion if k.startswith('down_blocks.')})
    counts = [_count(motion, f'down_blocks.{b}.motion_modules.') for b in downs]
    first = next(k for k in motion if '.transformer_blocks.' in k)
    stem = first[: first.index('transformer_blocks.')] + 'transformer_blocks.'
    depth = _count(motion, stem)
    middle = any(k.startswith('mid_block.') for k in motion)
    return {
        '_class_name': 'MotionAdapter',
        'block_out_channels': [
            motion[f'down_blocks.{b}.motion_modules.0.proj_in.weight'].shape[0] for b in downs
        ],
        'motion_layers_per_block': counts[0] if len(set(counts)) == 1 else counts,
        'motion_transformer_layers_per_block': depth,
        'motion_mid_block_layers_per_block': 1,
        'motion_num_attention_heads': 8,
        'motion_norm_num_groups': 32,
        'motion_max_seq_length': positions,
        'use_motion_mid_block': middle,
        **({'motion_transformer_layers_per_mid_block': depth} if middle else {}),
        'conv_in_channels': None if conv_in is None else conv_in[0].shape[1],
    }


def original_motion(weights: MotionWeights) -> dict[str, Tensor]:
    """The modules under the names of the original AnimateDiff and PIA files."""
    conv = dict(zip(_CONV, weights.conv_in, strict=True)) if weights.conv_in else {}
    return ANIMATEDIFF.to_theirs({**weights.tensors, **conv})


def merge_conv_in(
    base_weight: Tensor,
    base_bias: Tensor,
    pia_weight: Tensor,
    pia_bias: Tensor,
    first_channels: Literal['base', 'pia'] = 'base',
) -> tuple[Tensor, Tensor]:
    """PIA's first convolution on a personalised base model.

    Args:
        base_weight: Of the base UNet, [C, 4, 3, 3].
        base_bias: [C].
        pia_weight: [C, 9, 3, 3]: noisy latent (4), affinity (1), condition latent (4).
        pia_bias: [C].
        first_channels: Whose channels 0..3 and bias: 'base', as the official code does with a
            personalised model, or 'pia', as it does without one.

    Returns:
        New weight [C, 9, 3, 3] and bias [C] that share no memory with the arguments.
    """
    if first_channels not in ('base', 'pia'):
        raise WeightsError(f"first_channels={first_channels!r}, expected 'base' or 'pia'")
    known = base_weight.shape[1]
    shapes = [list(t.shape) for t in (base_weight, base_bias, pia_weight, pia_bias)]
    fits = base_weight.shape[0] == pia_weight.shape[0] == base_bias.shape[0] == pia_bias.shape[0]
    if not fits or base_weight.shape[2:] != pia_weight.shape[2:] or known > pia_weight.shape[1]:
        raise WeightsError(f'conv_in of base and PIA do not fit: {shapes}')
    weight = pia_weight.to(base_weight, copy=True)
    if first_channels == 'pia':
        return weight, pia_bias.to(base_bias, copy=True)
    weight[:, :known] = base_weight
    return weight, base_bias.clone()


def _image_layers(
    tensors: Mapping[str, Tensor], family: str, source: str
) -> tuple[tuple[Tensor, Tensor] | None, dict[str, Tensor]]:
    """PIA's convolution, and the rest that is no motion module."""
    rest = {k: v for k, v in tensors.items() if '.motion_modules.' not in k}
    conv = None
    if family in ('pia', 'pia_unet'):
        absent = [key for key in _CONV if key not in rest]
        if absent:
            raise WeightsError(f'{source} has no {absent[0]}')
        conv = (rest.pop(_CONV[0]), rest.pop(_CONV[1]))
    if rest and family not in ('pia_unet', 'unet_motion'):
        shown = ', '.join(list(rest)[:5])
        raise WeightsError(f'{source}: {len(rest)} tensors are no motion module: {shown}')
    return conv, rest


def _positions(
    motion: Mapping[str, Tensor],
    family: str,
    config: Mapping[str, Any],
    asked: int | None,
    source: str,
) -> int:
    found = position_count(motion)
    if found is None and family == 'animatelcm':
        found = asked or config.get('motion_max_seq_length') or _ANIMATELCM_POSITIONS
    found = found or asked or config.get('motion_max_seq_length')
    if found is None:
        raise WeightsError(
            f'{source} carries no frame positions; give max_positions (24 for AnimateDiff v1, 32 '
            'for v2, v3 and PIA)'
        )
    if asked not in (None, found):
        raise WeightsError(f'{source} has {found} frame positions, but max_positions={asked}')
    return found


def _fill_positions(motion: dict[str, Tensor], positions: int) -> None:
    """Official files may leave the encodings out, because a formula gives them."""
    for key in [k for k in motion if k.endswith('.norm1.weight')]:
        name = key.removesuffix('norm1.weight') + 'pos_embed.pe'
        if name not in motion:
            motion[name] = sinusoid(positions, motion[key].shape[0])


def sinusoid(positions: int, channels: int) -> Tensor:
    """Encodings [1, P, C] of Vaswani et al. 2017, section 3.5, base 10000."""
    rates = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
    angles = torch.arange(positions)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]


def _agreed(stated: Mapping[str, Any], found: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The stated config, completed by the tensors; what the tensors contradict is an error."""
    free = ('_class_name', 'motion_num_attention_heads', 'motion_norm_num_groups')
    for key, value in found.items():
        said = stated.get(key)
        if key in free or said is None or key == 'motion_mid_block_layers_per_block':
            continue
        if not _same(said, value):
            raise WeightsError(f'{source}: config.json says {key}={said}, the tensors say {value}')
    return {**found, **{k: v for k, v in stated.items() if v is not None}}


def _same(said: Any, value: Any) -> bool:
    if isinstance(said, (list, tuple)) and not isinstance(value, list):
        return all(item == value for item in said)
    return list(said) == value if isinstance(said, tuple) else said == value


def _count(motion: Mapping[str, Tensor], prefix: str) -> int:
    return len({k[len(prefix) :].split('.')[0] for k in motion if k.startswith(prefix)})

"""From one public layout to another, bit by bit; nothing is dropped in silence.

Only names and shapes change here. ``apis.convert`` reads and writes the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmvideo.checkpoints.control import describe_control
from mmvideo.checkpoints.layouts import (
    LORA_FAMILIES,
    LORA_LAYOUTS,
    MOTION_FAMILIES,
    SPARSECTRL,
    Identity,
    i2vgen_xl,
    identify,
    lora_to_ours,
    split_lora_key,
)
from mmvideo.checkpoints.layouts.controlnet import (
    beside_controlnet,
    controlnet_to_ours,
    controlnet_to_theirs,
)
from mmvideo.checkpoints.layouts.ldm import LAYOUTS as LDM_LAYOUTS
from mmvideo.checkpoints.layouts.ldm import diffusers_to_ldm, ldm_to_diffusers, sort_ldm
from mmvideo.checkpoints.layouts.svd import LAYOUTS as SVD_LAYOUTS
from mmvideo.checkpoints.layouts.svd import (
    describe_svd,
    diffusers_to_svd,
    sort_svd,
    svd_to_diffusers,
)
from mmvideo.checkpoints.lora_config import (
    ALPHA_TYPE,
    lora_metadata,
    stated_alpha,
    stated_configs,
)
from mmvideo.checkpoints.motion import original_motion, split_motion
from mmvideo.checkpoints.opened import Opened
from mmvideo.checkpoints.parts import clip_vision_tensors, vae_tensors
from mmvideo.checkpoints.single_file import describe_part
from mmvideo.errors import WeightsError, nearest

TARGETS = ('original', 'diffusers', 'comfyui', 'kohya', 'kohya_ldm', 'peft', 'safetensors')
_PIA_CHANNELS = 4  # of the noisy latent, in PIA's first convolution
_Parts = Mapping[str, Mapping[str, Tensor]]
# Of a pipeline, by what its denoiser is: the family of its original file, the parts that it has,
# and how they get there. All others are Stable Diffusion's.
_PIPELINES: dict[str, tuple[str, Iterable[str], Callable[[_Parts], dict[str, Tensor]]]] = {
    'svd_unet': ('svd', SVD_LAYOUTS, diffusers_to_svd),
    'i2vgen_xl_unet': (
        'i2vgen_xl',
        ('unet',),
        lambda parts: i2vgen_xl.UNET.to_theirs(parts['unet']),
    ),
}
_STABLE_DIFFUSION = ('ldm', LDM_LAYOUTS, diffusers_to_ldm)
# The part of a pipeline that a family is.
_PARTS = {'unet': 'unet', 'vae': 'vae', 'clip_text': 'text_encoder'}


@dataclass(frozen=True)
class Piece:
    """One file of the result.

    Attributes:
        tensors: In the target's names.
        folder: Inside the destination; empty for the destination itself.
        config: ``config.json`` beside it; None for a file by itself.
        metadata: Text for the header.
    """

    tensors: dict[str, Tensor]
    folder: str = ''
    config: dict[str, Any] | None = None
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Translation:
    """What a source becomes.

    Attributes:
        family: Of the source, a key of ``FAMILIES``.
        target: The layout.
        pieces: Files to write.
        notes: What the target cannot hold, or what was added, as sentences.
    """

    family: str
    target: str
    pieces: tuple[Piece, ...]
    notes: tuple[str, ...] = ()


def translate(opened: Opened, target: str | None = None) -> Translation:
    """Translate weights into another layout.

    Args:
        opened: What ``open_weights`` found.
        target: One of ``TARGETS``; None is diffusers' layout, or the original one of what is in
            diffusers' already. 'safetensors' keeps all names.

    Raises:
        WeightsError: A target that this kind of weights has not, or has already.
    """
    if target is not None and target not in TARGETS:
        raise WeightsError(f'--to {target}: expected one of {TARGETS}.{nearest(target, TARGETS)}')
    if opened.parts:
        return _pipeline(opened, target or 'original')
    found = identify(opened.tensors)
    if target == 'safetensors':
        piece = Piece(dict(opened.tensors), config=opened.config or None, metadata=opened.metadata)
        return Translation(found.family, target, (piece,))
    target = target or ('original' if found.layout in ('diffusers', 'peft') else 'diffusers')
    translators = _translators(found)
    if target not in translators:
        known = ', '.join([*translators, 'safetensors'])
        raise WeightsError(
            f'{opened.source} is {found.title} and has no layout {target!r}; it can become: {known}'
        )
    if _own_name(found, target):
        raise WeightsError(
            f'{opened.source} is {found.title} in the layout {found.layout!r} already; '
            '--to safetensors writes it again with its names'
        )
    return translators[target](opened, found, target)


_Translator = Callable[[Opened, Identity, str], Translation]


def _translators(found: Identity) -> dict[str, _Translator]:
    """Targets of a kind of weights."""
    if found.family in ('motion_lora', 'domain_adapter'):
        return dict.fromkeys(('original', 'diffusers', 'comfyui', 'peft', 'kohya'), _lora)
    if found.family in LORA_FAMILIES:
        return dict.fromkeys(('kohya', 'kohya_ldm', 'comfyui', 'diffusers', 'peft'), _lora)
    if found.family in ('pia_unet', 'unet_motion'):
        return {'diffusers': _whole_unet}
    if found.family in MOTION_FAMILIES:
        return dict.fromkeys(('original', 'diffusers', 'comfyui'), _motion)
    if found.family.startswith('sparsectrl'):
        return dict.fromkeys(('original', 'diffusers', 'comfyui'), _sparsectrl)
    if found.family in ('controlnet', 'controlnet_ldm'):
        return dict.fromkeys(('original', 'diffusers'), _controlnet)
    single = {'ldm': _from_ldm, 'svd': _from_svd, 'i2vgen_xl': _i2vgen}
    if found.family in single:
        return {'diffusers': single[found.family]}
    if found.family == 'i2vgen_xl_unet':
        return {'original': _i2vgen}
    if found.family == 'vae' and found.layout == 'original':
        return {'diffusers': _from_ldm}
    return {'original': _to_ldm} if found.family in _PARTS else {}


def _own_name(found: Identity, target: str) -> bool:
    """Whether the weights have the target's names already."""
    layout = found.layout.removesuffix('_xl')
    same = {
        'original': ('original', 'domain_adapter'),
        'comfyui': ('original', 'kohya', 'domain_adapter'),
    }
    return layout in same.get(target, (target,))


def _motion(opened: Opened, found: Identity, target: str) -> Translation:
    weights = split_motion(opened.tensors, opened.config, opened.source)
    added = not any(key.endswith('.pe') for key in opened.tensors)
    notes = ('the file has no frame positions; they were computed',) if added else ()
    if target != 'diffusers':
        return Translation(found.family, target, (Piece(original_motion(weights)),), notes)
    tensors = dict(weights.tensors)
    if weights.conv_in is not None:
        tensors |= {'conv_in.weight': weights.conv_in[0], 'conv_in.bias': weights.conv_in[1]}
    return Translation(found.family, target, (Piece(tensors, config=dict(weights.config)),), notes)


def _whole_unet(opened: Opened, found: Identity, target: str) -> Translation:
    """A trainer's whole UNet as its two halves, which is how a config names them."""
    if opened.config:
        raise WeightsError(f'{opened.source} is in the layout of diffusers already')
    weights = split_motion(opened.tensors, {}, opened.source)
    image, motion = dict(weights.image), dict(weights.tensors)
    if weights.conv_in is not None:
        weight, bias = weights.conv_in
        motion |= {'conv_in.weight': weight, 'conv_in.bias': bias}
        image |= {'conv_in.weight': weight[:, :_PIA_CHANNELS].contiguous(), 'conv_in.bias': bias}
    pieces = (
        Piece(image, 'unet', describe_part('unet', image, opened.source)),
        Piece(motion, 'motion_adapter', dict(weights.config)),
    )
    return Translation(found.family, target, pieces)


def _sparsectrl(opened: Opened, found: Identity, target: str) -> Translation:
    if target != 'diffusers':
        tensors = SPARSECTRL.to_theirs(opened.tensors)
        return Translation(found.family, target, (Piece(tensors),))
    ours = SPARSECTRL.to_ours(opened.tensors)
    config = describe_control(ours, opened.source)
    return Translation(found.family, target, (Piece(ours, config=config),))


def _controlnet(opened: Opened, found: Identity, target: str) -> Translation:
    if target == 'original':
        piece = Piece(controlnet_to_theirs(opened.tensors))
        return Translation(found.family, target, (piece,))
    rest = beside_controlnet(opened.tensors)
    notes = (f'{len(rest)} tensors left out: no part of the ControlNet',) if rest else ()
    ours = controlnet_to_ours(opened.tensors)
    config = describe_control(ours, opened.source)
    return Translation(found.family, target, (Piece(ours, config=config),), notes)


def _lora(opened: Opened, found: Identity, target: str) -> Translation:
    ours = lora_to_ours(opened.tensors)
    ours |= _stated_alphas(opened, ours)
    family = found.family
    if target in ('diffusers', 'peft') and family not in ('motion_lora', 'domain_adapter'):
        plain = {key: value for key, value in ours.items() if not key.endswith('.alpha')}
        tensors = LORA_LAYOUTS[target].to_theirs(plain)
        return Translation(family, target, (Piece(tensors, metadata=lora_metadata(ours)),))
    return Translation(family, target, (Piece(_lora_layout(found, ours, target).to_theirs(ours)),))


def _lora_layout(found: Identity, ours: Mapping[str, Tensor], target: str) -> Any:
    special = found.family in ('motion_lora', 'domain_adapter')
    if special and target in ('original', 'comfyui'):
        return LORA_LAYOUTS[found.family]
    if special and target == 'diffusers':
        return LORA_LAYOUTS['processor']
    name = 'kohya' if target == 'comfyui' else target
    two = any(key.startswith('text_encoder_2.') for key in ours) or found.base == 'sdxl'
    return LORA_LAYOUTS[name + '_xl' if two and name.startswith('kohya') else name]


def _stated_alphas(opened: Opened, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Alphas as tensors that the header, or PEFT's config beside the file, says instead."""
    stated = stated_configs(opened.metadata, opened.config, opened.source)
    kind = getattr(torch, opened.metadata.get(ALPHA_TYPE, 'float32'))
    found = {}
    for key, value in ours.items():
        layer, end = split_lora_key(key)
        if end != 'lora_A.weight' or f'{layer}.alpha' in ours:
            continue
        part, _, path = layer.partition('.')
        alpha = stated_alpha(stated.get(part, {}), path, value.shape[0])
        if alpha is not None:
            found[f'{layer}.alpha'] = torch.tensor(alpha, dtype=kind)
    return found


def _from_ldm(opened: Opened, found: Identity, target: str) -> Translation:
    file = sort_ldm(opened.tensors, opened.source)
    parts = ldm_to_diffusers(opened.tensors, source=opened.source)
    notes = _left_out(file.leftovers)
    if file.ema and 'unet' in file.parts:
        notes.append(f'{len(file.ema)} tensors of the EMA copy left out: the plain weights count')
    return _in_folders(opened, found, parts, describe_part, notes)


def _from_svd(opened: Opened, found: Identity, target: str) -> Translation:
    _, leftovers = sort_svd(opened.tensors, opened.source)
    parts = svd_to_diffusers(opened.tensors, opened.source)
    return _in_folders(opened, found, parts, describe_svd, _left_out(leftovers))


def _left_out(leftovers: Mapping[str, list[str]]) -> list[str]:
    return [f'{len(keys)} tensors left out: {reason}' for reason, keys in leftovers.items()]


def _in_folders(
    opened: Opened,
    found: Identity,
    parts: Mapping[str, dict[str, Tensor]],
    describe: Callable[[str, Mapping[str, Tensor], str], dict[str, Any]],
    notes: list[str],
) -> Translation:
    """Each part in its folder; a part by itself in the destination."""
    pieces = (
        Piece(tensors, '' if len(parts) == 1 else name, describe(name, tensors, opened.source))
        for name, tensors in parts.items()
    )
    return Translation(found.family, 'diffusers', tuple(pieces), tuple(notes))


def _i2vgen(opened: Opened, found: Identity, target: str) -> Translation:
    if target == 'original':
        piece = Piece(i2vgen_xl.UNET.to_theirs(opened.tensors))
    else:
        ours = i2vgen_xl.UNET.to_ours(opened.tensors)
        piece = Piece(ours, config=i2vgen_xl.describe_i2vgen(ours, opened.source))
    return Translation(found.family, target, (piece,))


def _to_ldm(opened: Opened, found: Identity, target: str) -> Translation:
    if found.family == 'vae':  # by itself it has no prefix
        tensors = LDM_LAYOUTS['vae'].to_theirs(vae_tensors(opened.tensors))
    else:
        tensors = diffusers_to_ldm({_PARTS[found.family]: opened.tensors})
    return Translation(found.family, target, (Piece(tensors),))


def _pipeline(opened: Opened, target: str) -> Translation:
    if target != 'original':
        raise WeightsError(f'{opened.source} is a pipeline; it can become: original')
    if 'unet' not in opened.parts:
        raise WeightsError(f'{opened.source} has no unet, only {", ".join(opened.parts)}')
    denoiser = identify(opened.parts['unet'].tensors).family
    family, known, to_theirs = _PIPELINES.get(denoiser, _STABLE_DIFFUSION)
    parts = {name: part.tensors for name, part in opened.parts.items() if name in known}
    if 'image_encoder' in parts:
        parts['image_encoder'] = clip_vision_tensors(parts['image_encoder'])
    rest = [name for name in opened.parts if name not in parts]
    notes = (f'left out, as the file has no place for them: {", ".join(rest)}',) if rest else ()
    return Translation(family, target, (Piece(to_theirs(parts)),), notes)

"""LoRA in training: pairs beside the frozen layers of a denoiser, and their file.

    y = W x + (alpha / r) up(down(x)),  up = 0 at first          (Hu et al. 2021, section 4.1)

The change is computed as that of a LoRA from a file (``low_rank``); only here its tensors are
parameters. So what is trained is what ``adapters=[dict(type='LoRA', ...)]`` gives afterwards.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmvideo.checkpoints.files import write_tensors
from mmvideo.checkpoints.layouts import LORA_LAYOUTS
from mmvideo.checkpoints.lora_config import lora_metadata
from mmvideo.checkpoints.save import cast_tensors
from mmvideo.errors import ConfigError
from mmvideo.models.adapters.low_rank import LowRank, Pair, put, slot_of, weight_of
from mmvideo.models.borrowed.source import check_keys

FILE_NAME = 'pytorch_lora_weights.safetensors'
# No adapter from a file has a name with a space.
NAME = 'in training'
_PART = 'unet'
_MOST_RANK = 1024


@dataclass(frozen=True)
class LoRASettings:
    """What a config says of a LoRA to be trained.

    Attributes:
        rank: r.
        alpha: the change is scaled by ``alpha / rank``; None is the rank.
        targets: regular expressions over the names of layers (``down_blocks...attn1.to_q``); each
            linear layer or 2-d convolution in whose name one is found gets a pair.
    """

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = (r'attentions\..*attn\d\.to_(q|k|v|out\.0)$',)


def read_settings(config: Any) -> LoRASettings:
    """The settings of ``model.lora``.

    Raises:
        ConfigError: naming the key, its value and what was expected.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f'model.lora={config!r:.80}: expected dict(rank=8, targets=[...]).')
    check_keys('model.lora', config, frozenset(LoRASettings.__dataclass_fields__))
    given = LoRASettings(**{**config, 'targets': _patterns(config)})
    if type(given.rank) is not int or not 1 <= given.rank <= _MOST_RANK:
        raise ConfigError(f'model.lora.rank={given.rank!r}: expected 1 to {_MOST_RANK}.')
    alpha = given.rank if given.alpha is None else given.alpha
    number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
    if not number or not 0 < alpha < math.inf:
        raise ConfigError(f'model.lora.alpha={alpha!r}: expected a number above 0.')
    return LoRASettings(given.rank, float(alpha), given.targets)


def _patterns(config: Mapping[str, Any]) -> tuple[str, ...]:
    targets = config.get('targets', LoRASettings.targets)
    if isinstance(targets, str) or not isinstance(targets, Sequence) or not targets:
        raise ConfigError(f'model.lora.targets={targets!r}: expected a list of expressions.')
    for pattern in targets:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ConfigError(
                f'model.lora.targets: {pattern!r} is no regular expression: {error}.'
            ) from error
    return tuple(targets)


def add_trained_lora(
    denoiser: nn.Module, settings: LoRASettings, idle: Collection[str] = ()
) -> dict[str, LowRank]:
    """Put pairs to be trained beside the layers of a denoiser, whose own parameters stay frozen.

    Args:
        denoiser: with the layers that the targets name.
        settings: of the LoRA.
        idle: names of layers that never run; a pair there would get no gradient, so they get none.

    Returns:
        The pairs by the layer's name.

    Raises:
        ConfigError: a target that no layer has, or idle ones alone.
    """
    layers = targeted_layers(denoiser, settings.targets)
    pairs = {}
    for name in (name for name in layers if name not in idle):
        layer = layers[name]
        put(layer, NAME, _new_pair(layer, settings))
        pair = slot_of(layer).part(NAME)
        pair.train_it()
        pairs[name] = pair
    if not pairs:
        raise ConfigError(
            f'model.lora.targets={list(settings.targets)}: the denoiser has such layers '
            f'({next(iter(layers))}), but none of them does anything in this model.'
        )
    return pairs


def save_lora(path: str | Path, pairs: Mapping[str, LowRank], dtype: str | None = None) -> Path:
    """Write pairs as a file that mmvideo, diffusers and PEFT read; the alphas are in its header.

    Args:
        path: ends in ``.safetensors``.
        pairs: by the layer's name.
        dtype: floating type in the file; None keeps that of the pairs.
    """
    tensors, alphas = {}, {}
    for name, pair in pairs.items():
        layer = f'{_PART}.{name}'
        tensors[f'{layer}.lora_A.weight'] = pair.down.detach()
        tensors[f'{layer}.lora_B.weight'] = pair.up.detach()
        alphas[f'{layer}.alpha'] = torch.tensor(pair.factor * pair.down.shape[0])
    metadata = lora_metadata({**tensors, **alphas})
    written = LORA_LAYOUTS['peft'].to_theirs(cast_tensors(tensors, dtype))
    return write_tensors(Path(path), written, metadata)


def targeted_layers(denoiser: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The layers of a denoiser whose names the patterns are found in, by name.

    Raises:
        ConfigError: a pattern that no layer has.
    """
    known = {name: m for name, m in denoiser.named_modules() if _takes_a_pair(m)}
    found: set[str] = set()
    for pattern in patterns:
        fitting = {name for name in known if re.search(pattern, name)}
        if not fitting:
            example = list(known)[len(known) // 2]
            raise ConfigError(
                f'model.lora.targets: {pattern!r} is found in the name of no linear layer and no '
                f'2-d convolution of the denoiser; names are such as {example!r}.'
            )
        found |= fitting
    return {name: layer for name, layer in known.items() if name in found}


def _takes_a_pair(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def _new_pair(layer: nn.Module, settings: LoRASettings) -> Pair:
    weight = weight_of(layer)
    down = torch.empty(settings.rank, *weight.shape[1:])
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    up = torch.zeros(weight.shape[0], settings.rank, *[1] * (weight.ndim - 2))
    return Pair(down, up, settings.alpha)

"""Pairs of a LoRA from any public file, with the alpha that the file or its config says.

An alpha stands in one of three places: a tensor beside the pair (kohya), the ``lora_adapter_
metadata`` of a safetensors header (diffusers), or the ``adapter_config.json`` beside the file
(PEFT). Where none says one, it is the rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmvideo.checkpoints.files import read_json, read_metadata, read_tensors
from mmvideo.checkpoints.layouts import lora_to_ours, split_lora_key
from mmvideo.checkpoints.layouts.lora import stated_alpha
from mmvideo.errors import WeightsError
from mmvideo.models.adapters.low_rank import Pair

_METADATA = 'lora_adapter_metadata'
_PARTS = ('unet', 'text_encoder', 'text_encoder_2')


def read_pairs(path: str | Path) -> dict[str, Pair]:
    """The pairs of a file by the layer's name, such as ``unet.conv_in``; they own their memory.

    Raises:
        WeightsError: the file is damaged, or no LoRA that these layers can have.
    """
    path = Path(path)
    tensors = read_tensors(path)
    try:
        named = lora_to_ours(tensors)
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from error
    stated = read_stated(path)
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in named.items():
        layer, end = split_lora_key(name)
        layers.setdefault(layer, {})[end] = value
    return {layer: _pair(layer, found, stated) for layer, found in layers.items()}


def read_stated(path: Path) -> dict[str, Mapping[str, Any]]:
    """The LoRA configs that stand with a file, by part of the model; empty without any."""
    beside = path.parent / 'adapter_config.json'
    if beside.is_file():
        config = read_json(beside)
        return dict.fromkeys(_PARTS, config)
    if path.suffix != '.safetensors' or _METADATA not in (found := read_metadata(path)):
        return {}
    try:
        flat = json.loads(found[_METADATA])
    except json.JSONDecodeError as error:
        raise WeightsError(f'{path}: its {_METADATA} is no JSON: {error}') from error
    if not isinstance(flat, dict):
        raise WeightsError(f'{path}: its {_METADATA} is a {type(flat).__name__}, expected a dict')
    configs: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        part, _, name = key.partition('.')
        configs.setdefault(part, {})[name] = value
    return {part: config for part, config in configs.items() if part in _PARTS}


def _pair(layer: str, found: Mapping[str, Tensor], stated: Mapping[str, Mapping]) -> Pair:
    down, up = found['lora_A.weight'].clone(), found['lora_B.weight'].clone()
    mid = found.get('lora_mid.weight')
    mid = None if mid is None else mid.clone()
    part, _, path = layer.partition('.')
    if 'alpha' in found:
        alpha: float | None = float(found['alpha'])
    else:
        alpha = stated_alpha(stated.get(part, {}), path, down.shape[0])
    return Pair(down, up, alpha, mid)

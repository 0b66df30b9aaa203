"""Pairs of a LoRA from any public file, with the alpha that the file or its config says.

An alpha stands in one of three places: a tensor beside the pair (kohya), the ``lora_adapter_
metadata`` of a safetensors header (diffusers), or the ``adapter_config.json`` beside the file
(PEFT). Where none says one, it is the rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmvideo.checkpoints.files import read_json, read_metadata, read_tensors
from mmvideo.checkpoints.layouts import lora_to_ours, split_lora_key
from mmvideo.checkpoints.lora_config import stated_alpha, stated_configs
from mmvideo.errors import WeightsError
from mmvideo.models.adapters.low_rank import Pair


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
    config = read_json(beside) if beside.is_file() else {}
    metadata = read_metadata(path) if path.suffix == '.safetensors' else {}
    return stated_configs(metadata, config, str(path))


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

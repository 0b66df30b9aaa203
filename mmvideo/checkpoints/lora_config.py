"""What stands with the pairs of a LoRA: ranks and alphas, in a header or in PEFT's config."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmvideo.checkpoints.layouts import split_lora_key
from mmvideo.errors import WeightsError

# Where diffusers keeps the configs of a file's LoRAs, in the header.
LORA_METADATA = 'lora_adapter_metadata'
# The type that alphas had as tensors, so that they become the same again.
ALPHA_TYPE = 'alpha_dtype'
_PARTS = ('unet', 'text_encoder', 'text_encoder_2')


def lora_metadata(ours: Mapping[str, Tensor]) -> dict[str, str]:
    """The alphas, where PEFT and diffusers look for them: neither reads a tensor for it.

    Args:
        ours: pairs and alphas under our names, see ``layouts.lora``.
    """
    alphas = {k: float(v) for k, v in ours.items() if k.endswith('.alpha')}
    if not alphas:
        return {}
    ranks = {
        split_lora_key(key)[0]: value.shape[0]
        for key, value in ours.items()
        if key.endswith('.lora_A.weight')
    }
    flat: dict[str, Any] = {}
    for part in dict.fromkeys(layer.split('.')[0] for layer in ranks):
        own = {k.removeprefix(part + '.'): r for k, r in ranks.items() if k.startswith(part + '.')}
        values = {layer: alphas.get(f'{part}.{layer}.alpha', rank) for layer, rank in own.items()}
        rank, alpha = (Counter(d.values()).most_common(1)[0][0] for d in (own, values))
        flat |= {
            f'{part}.r': rank,
            f'{part}.lora_alpha': alpha,
            f'{part}.rank_pattern': {k: v for k, v in own.items() if v != rank},
            f'{part}.alpha_pattern': {k: v for k, v in values.items() if v != alpha},
            f'{part}.target_modules': sorted(own),
        }
    kind = next(v.dtype for k, v in ours.items() if k.endswith('.alpha'))
    return {
        LORA_METADATA: json.dumps(flat, sort_keys=True),
        ALPHA_TYPE: str(kind).removeprefix('torch.'),
    }


def stated_configs(
    metadata: Mapping[str, str], config: Mapping[str, Any], source: str
) -> dict[str, Mapping[str, Any]]:
    """What stands with a LoRA about its alphas, by part of the model; empty where nothing does.

    Args:
        metadata: of the file's header, where diffusers writes a config for each part.
        config: of the ``adapter_config.json`` beside the file, PEFT's; it is for any part that the
            header says nothing of.
        source: for messages.

    Raises:
        WeightsError: a header that cannot be read.
    """
    stated: dict[str, Mapping[str, Any]] = dict.fromkeys(_PARTS, config) if config else {}
    try:
        flat = json.loads(metadata.get(LORA_METADATA, '{}'))
    except json.JSONDecodeError as error:
        raise WeightsError(f'{source}: its {LORA_METADATA} is no JSON: {error}') from error
    if not isinstance(flat, dict):
        kind = type(flat).__name__
        raise WeightsError(f'{source}: its {LORA_METADATA} is a {kind}, expected a dict')
    configs: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        part, _, name = key.partition('.')
        configs.setdefault(part, {})[name] = value
    return stated | {part: said for part, said in configs.items() if part in _PARTS}


def stated_alpha(config: Mapping[str, Any], layer: str, rank: int) -> float | None:
    """PEFT's rule: the first of ``alpha_pattern`` that fits, else ``lora_alpha``; rsLoRA divides by
    sqrt(r).

    The result is for a division by the rank.

    Raises:
        WeightsError: a pattern that is no name of layers: expressions are not run for a file.
    """
    alpha = config.get('lora_alpha')
    for pattern, value in (config.get('alpha_pattern') or {}).items():
        if not re.fullmatch(r'[\w.\-]+', pattern):
            raise WeightsError(
                f'alpha_pattern {pattern!r}: expected the name of a layer, or its end'
            )
        if layer == pattern or layer.endswith(f'.{pattern}'):
            alpha = value
            break
    if alpha is None:
        return None
    return float(alpha) * (rank**0.5 if config.get('use_rslora') else 1.0)

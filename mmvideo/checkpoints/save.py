"""Write parts of a model in the folder layout that diffusers and transformers read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmvideo.checkpoints.files import write_tensors, write_text
from mmvideo.checkpoints.load import dtype_of
from mmvideo.errors import WeightsError

DIFFUSERS_NAME = 'diffusion_pytorch_model.safetensors'
TRANSFORMERS_NAME = 'model.safetensors'
_TRANSIENT = ('_use_default_values', '_ignore_files', '_name_or_path')


def save_part(
    folder: str | Path,
    config: Mapping[str, Any],
    weights: nn.Module | Mapping[str, Tensor],
    dtype: str | torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write ``config.json`` and the weights of one part.

    Args:
        folder: For example ``model/vae``; created.
        config: Plain data. A diffusers part needs ``_class_name`` in it (taken from the module
            when absent), a transformers part ``model_type`` or ``architectures``.
        weights: A module or tensors by name.
        dtype: Floating type in the file; None writes each tensor as it is.
        metadata: Text for the header of the weight file.

    Returns:
        The weight file.
    """
    folder = Path(folder)
    config = _kept(config)
    of_transformers = 'model_type' in config or 'architectures' in config
    if isinstance(weights, nn.Module):
        if not of_transformers:
            config.setdefault('_class_name', type(weights).__name__)
        weights = weights.state_dict()
    if not of_transformers and '_class_name' not in config:
        raise WeightsError(f"{folder}: the config of tensors alone needs '_class_name'")
    name = TRANSFORMERS_NAME if of_transformers else DIFFUSERS_NAME
    path = write_tensors(folder / name, cast_tensors(weights, dtype), metadata)
    write_json(folder / 'config.json', config)
    return path


def save_scheduler(folder: str | Path, scheduler: Any) -> Path:
    """Write ``scheduler_config.json`` of a diffusers scheduler."""
    config = _kept(scheduler.config)
    config['_class_name'] = type(scheduler).__name__
    return write_json(Path(folder) / 'scheduler_config.json', config)


def save_tokenizer(folder: str | Path, tokenizer: Any) -> Path:
    """Write the files of a CLIPTokenizer, also those that transformers before 5 reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    state = json.loads(tokenizer.backend_tokenizer.to_str())['model']
    write_json(folder / 'vocab.json', state['vocab'], indent=None)
    pairs = [pair if isinstance(pair, str) else ' '.join(pair) for pair in state['merges']]
    write_text(folder / 'merges.txt', '#version: 0.2\n' + ''.join(f'{pair}\n' for pair in pairs))
    return folder


def write_json(path: str | Path, content: Mapping[str, Any], indent: int | None = 2) -> Path:
    """Write plain data as JSON, all or nothing."""
    return write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + '\n')


def cast_tensors(
    tensors: Mapping[str, Tensor], dtype: str | torch.dtype | None
) -> dict[str, Tensor]:
    """Tensors with another floating type; None leaves them as they are."""
    if dtype is None:
        return dict(tensors)
    kind = dtype_of(dtype)
    return {k: v.to(kind) if v.is_floating_point() else v for k, v in tensors.items()}


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data without what the libraries note for themselves while they run."""
    return {key: _plain(value) for key, value in config.items() if key not in _TRANSIENT}


def _plain(value: Any) -> Any:
    """JSON's own types; a value that has none is an error, never a string of itself."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, 'tolist'):  # numpy arrays, such as trained_betas
        return value.tolist()
    raise WeightsError(f'a config can hold plain data only, got {type(value).__name__}: {value!r}')

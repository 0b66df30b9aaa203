"""Any source as people name it: one file, a part with its config, or a whole pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mmvideo.checkpoints.files import SUFFIXES, read_json, read_metadata
from mmvideo.checkpoints.load import read_files
from mmvideo.checkpoints.sources import (
    WEIGHT_FILES,
    local_root,
    resolve,
    resolve_weights,
    weight_file,
    with_variant,
)
from mmvideo.errors import WeightsError

_INDEX = 'model_index.json'
_CONFIG = 'config.json'
_PEFT_CONFIG = 'adapter_config.json'
# Adapters stand in a folder without a config.json.
ADAPTER_FILES = (
    'pytorch_lora_weights.safetensors', 'pytorch_lora_weights.bin', 'adapter_model.safetensors',
    'adapter_model.bin', 'learned_embeds.safetensors', 'learned_embeds.bin',
)  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """Weights that were found and mapped, not yet understood.

    Attributes:
        source: As it was named.
        paths: The weight files.
        config: The ``config.json`` (of PEFT, ``adapter_config.json``) beside them; empty without.
        tensors: As ``read_tensors`` gives them; of a pipeline none.
        metadata: Of the first file's header.
        parts: Of a pipeline, by folder.
    """

    source: str
    paths: tuple[Path, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Opened] = field(default_factory=dict)


def open_weights(
    source: str | Path,
    subfolder: str | None = None,
    *,
    variant: str | None = None,
    revision: str | None = None,
) -> Opened:
    """Find and map the weights of a source.

    Args:
        source: File, folder, hub id, ``package://NAME`` or ``catalog://NAME``. A folder may be
            a part with its ``config.json``, an adapter, a pipeline with its ``model_index.json``,
            or hold one weight file alone.
        subfolder: Folder inside the source.
        variant: Which files of a folder, such as 'fp16'.
        revision: Branch, tag or commit on the hub.

    Raises:
        WeightsError: There is nothing to open, or a choice to be made.
    """
    single = weight_file(source, revision)
    if single is not None:
        return _opened(str(source), [single], _config_beside(single))
    names = (_INDEX, _CONFIG, *ADAPTER_FILES)
    lone = _lone_files(source, subfolder, names)
    if lone:
        return _opened(str(source), [_only(str(source), lone)], {})
    first = resolve(source, subfolder, filenames=names, revision=revision)
    if first.name == _INDEX:
        return _pipeline(str(source), first, variant)
    if first.name != _CONFIG:
        return _opened(str(source), [first], _config_beside(first))
    paths = resolve_weights(source, subfolder, variant=variant, revision=revision)
    return _opened(str(source), paths, read_json(first))


def _opened(source: str, paths: Sequence[Path], config: dict[str, Any]) -> Opened:
    tensors = read_files(paths)
    metadata = read_metadata(paths[0]) if paths[0].suffix == '.safetensors' else {}
    return Opened(source, tuple(paths), config, tensors, metadata)


def _config_beside(path: Path) -> dict[str, Any]:
    """Only a file of a part's usual name belongs to the config beside it."""
    adapter = path.name in ADAPTER_FILES
    config = path.parent / (_PEFT_CONFIG if adapter else _CONFIG)
    usual = adapter or path.name in WEIGHT_FILES or path.name.endswith('.fp16.safetensors')
    return read_json(config) if usual and config.is_file() else {}


def _lone_files(source: str | Path, subfolder: str | None, names: Sequence[str]) -> list[Path]:
    """The weight files of a local folder that has none of ``names``."""
    root = local_root(source)
    if root is None:
        return []
    folder = root / subfolder if subfolder else root
    if not folder.is_dir() or any((folder / name).is_file() for name in names):
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)


def _only(source: str, files: Sequence[Path]) -> Path:
    if len(files) > 1:
        shown = ', '.join(path.name for path in files[:12])
        raise WeightsError(f'{source} holds {len(files)} weight files, name one of them: {shown}')
    return files[0]


def _pipeline(source: str, index: Path, variant: str | None) -> Opened:
    """Every part of a local pipeline that has weights."""
    folders = [name for name, value in read_json(index).items() if isinstance(value, list)]
    parts = {}
    for name in folders:
        folder = index.parent / name
        if (folder / _CONFIG).is_file() and _has_weights(folder, variant):
            paths = resolve_weights(folder, variant=variant)
            parts[name] = _opened(f'{source}/{name}', paths, read_json(folder / _CONFIG))
    if not parts:
        raise WeightsError(
            f'{source} is a pipeline whose parts are not here; name one of them as the subfolder: '
            + ', '.join(folders)
        )
    return Opened(source, parts=parts)


def _has_weights(folder: Path, variant: str | None) -> bool:
    return any((folder / with_variant(name, variant)).is_file() for name in WEIGHT_FILES)

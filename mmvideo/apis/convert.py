"""Weight files from one public layout to another; the translation is ``checkpoints.convert``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmvideo.checkpoints.convert import Piece, Translation, translate
from mmvideo.checkpoints.files import SUFFIXES, sha256, write_tensors
from mmvideo.checkpoints.load import dtype_of
from mmvideo.checkpoints.opened import Opened, open_weights
from mmvideo.checkpoints.save import (
    DIFFUSERS_NAME,
    TRANSFORMERS_NAME,
    cast_tensors,
    save_part,
)
from mmvideo.errors import InputError
from mmvideo.version import __version__

_SUFFIX = '.safetensors'
_LORA_NAME = 'pytorch_lora_weights.safetensors'


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        translation: What the source became.
        paths: The weight files.
    """

    translation: Translation
    paths: tuple[Path, ...]


def convert(
    source: str | Path,
    destination: str | Path,
    to: str | None = None,
    *,
    dtype: str | None = None,
    force: bool = False,
    subfolder: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
) -> Converted:
    """Write weights in another layout.

    Args:
        source: File, folder, hub id, ``package://NAME`` or ``catalog://NAME``.
        destination: A ``.safetensors`` file or an existing folder for a layout of one file, else
            the folder to write.
        to: A layout, see ``checkpoints.convert.translate``.
        dtype: 'float32', 'float16' or 'bfloat16'; None keeps every tensor's type.
        force: Whether files that exist may be replaced.
        subfolder: Folder inside the source.
        variant: Which files of a source, such as 'fp16'.
        revision: Branch, tag or commit on the hub.

    Raises:
        WeightsError: The source cannot be read, or has no such layout.
        InputError: The destination cannot be written.
    """
    if dtype is not None:
        dtype_of(dtype)
    opened = open_weights(source, subfolder, variant=variant, revision=revision)
    translation = translate(opened, to)
    target = Path(destination).expanduser()
    metadata = {**_provenance(opened), 'family': translation.family, 'layout': translation.target}
    pieces = translation.pieces
    if len(pieces) == 1 and not pieces[0].folder and pieces[0].config is None:
        paths = [_file_path(target, opened, translation)]
        _check_new(paths, force)
        piece = pieces[0]
        write_tensors(paths[0], cast_tensors(piece.tensors, dtype), {**piece.metadata, **metadata})
    else:
        paths = _write_folder(target, pieces, dtype, metadata, force)
    return Converted(translation, tuple(paths))


def _provenance(opened: Opened) -> dict[str, str]:
    paths = [path for part in opened.parts.values() for path in part.paths] or opened.paths
    return {
        'mmvideo': __version__,
        'source': ' '.join(path.name for path in paths),
        'source_sha256': ' '.join(sha256(path) for path in paths),
    }


def _file_path(target: Path, opened: Opened, translation: Translation) -> Path:
    """The file to write: the destination, or a name of its kind inside of it."""
    if target.is_dir():
        lora = 'lora' in translation.family and translation.target == 'diffusers'
        stem = opened.paths[0].stem if opened.paths else 'model'
        return target / (_LORA_NAME if lora else stem + _SUFFIX)
    if target.suffix != _SUFFIX:
        raise InputError(
            f'{target}: the layout {translation.target!r} is one file; expected a name that ends '
            f'in {_SUFFIX}, or a folder that exists'
        )
    return target


def _write_folder(
    target: Path,
    pieces: tuple[Piece, ...],
    dtype: str | None,
    metadata: Mapping[str, str],
    force: bool,
) -> list[Path]:
    """A new folder takes its name when it is whole; in one that exists each file does."""
    if target.is_file() or target.suffix in SUFFIXES:
        raise InputError(f'{target}: this layout is a folder of files; expected the name of one')
    names = [_weight_name(piece) for piece in pieces]
    _check_new([target / name for name in names], force)
    whole = not target.exists()
    place = target.with_name(f'.{target.name}.part-{os.getpid()}') if whole else target
    try:
        for piece in pieces:
            config = {k: v for k, v in (piece.config or {}).items() if not k.startswith('_diff')}
            found = {**piece.metadata, **metadata}
            save_part(place / piece.folder, config, piece.tensors, dtype, found)
        if whole:
            place.rename(target)
    finally:
        if whole:
            shutil.rmtree(place, ignore_errors=True)
    return [target / name for name in names]


def _weight_name(piece: Piece) -> str:
    """The file that ``save_part`` writes for a piece."""
    config = piece.config or {}
    transformers = 'model_type' in config or 'architectures' in config
    return str(Path(piece.folder) / (TRANSFORMERS_NAME if transformers else DIFFUSERS_NAME))


def _check_new(paths: list[Path], force: bool) -> None:
    found = [str(path) for path in paths if path.exists()]
    if found and not force:
        raise InputError(f'{", ".join(found)}: exists already; --force replaces it')

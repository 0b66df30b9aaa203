"""Commit a training state to disk, all or nothing, and read it back verified.

A checkpoint is a directory: tensors as safetensors, everything else as JSON, and a
``manifest.json`` with size and sha256 of each file. It is written beside its final name, synced,
then renamed; a reader therefore sees a whole checkpoint or none. No pickle is involved.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mmvideo.errors import WeightsError

MANIFEST = 'manifest.json'


def commit(folder: Path, tensors: dict[str, dict[str, torch.Tensor]], state: dict) -> Path:
    """Write ``<group>.safetensors`` for each group of tensors and ``state.json`` into ``folder``.

    Args:
        folder: final name; an existing checkpoint of that name is replaced after the new one is
            complete.
        tensors: group name to named tensors.
        state: plain JSON data.
    """
    folder = Path(folder)
    aside = folder.with_name(f'{folder.name}.tmp-{os.getpid()}')
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for group, named in tensors.items():
        plain = {name: t.detach().contiguous().cpu() for name, t in named.items()}
        save_file(plain, aside / f'{group}.safetensors', metadata={'format': 'pt'})
    (aside / 'state.json').write_text(json.dumps(state, indent=1), encoding='utf-8')
    files = {p.name: _fingerprint(p) for p in sorted(aside.iterdir())}
    (aside / MANIFEST).write_text(json.dumps({'files': files}, indent=1), encoding='utf-8')
    for path in [*aside.iterdir(), aside]:
        _sync(path)
    if folder.exists():
        old = folder.with_name(f'{folder.name}.old-{os.getpid()}')
        folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old)
    else:
        aside.rename(folder)
    _sync(folder.parent)
    return folder


def read_commit(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    """The tensors by group and the state of a checkpoint, after verifying every byte.

    Raises:
        WeightsError: naming the file that is missing or damaged.
    """
    folder = Path(folder)
    verify(folder)
    tensors = {p.stem: load_file(p) for p in sorted(folder.glob('*.safetensors'))}
    return tensors, json.loads((folder / 'state.json').read_text(encoding='utf-8'))


def verify(folder: Path) -> None:
    """Check every file of a checkpoint against its manifest; raise WeightsError if one differs."""
    manifest = folder / MANIFEST
    try:
        files = json.loads(manifest.read_text(encoding='utf-8'))['files']
    except FileNotFoundError:
        raise WeightsError(f'{folder} is no checkpoint: it has no {MANIFEST}.') from None
    except (ValueError, KeyError, TypeError):
        raise WeightsError(f'{manifest} is damaged: it is not the JSON that was written.') from None
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise WeightsError(f'{path} is missing from the checkpoint.')
        if _fingerprint(path) != expected:
            raise WeightsError(f'{path} is damaged: its sha256 differs from the manifest.')


def checkpoints(work_dir: Path) -> list[Path]:
    """Committed checkpoints ``iter_N`` of a work dir, oldest first."""
    found = [p for p in Path(work_dir).glob('iter_*') if p.is_dir() and p.name[5:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def prune(work_dir: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and what a killed writer left behind."""
    for folder in checkpoints(work_dir)[:-keep]:
        shutil.rmtree(folder)
    for pattern in ('iter_*.tmp-*', 'iter_*.old-*'):
        for leftover in Path(work_dir).glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def _fingerprint(path: Path) -> dict:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {'size': path.stat().st_size, 'sha256': digest.hexdigest()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

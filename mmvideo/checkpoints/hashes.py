"""Hashes of fetched files: what is published must fit, what is not is recorded on first use.

The records are one small JSON beside the cache, ``hub.sha256.json`` for a cache named ``hub``
(``MMVIDEO_HASHES`` names another). It outlives the cache: a file that was deleted and comes back
changed is noticed. It is replaced as a whole, under a lock, so two processes lose nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mmvideo.checkpoints.catalog import known_versions
from mmvideo.checkpoints.files import SUFFIXES, read_json, sha256, write_text
from mmvideo.errors import WeightsError

_SHA256 = re.compile(r'[0-9a-f]{64}')
_GIT = re.compile(r'[0-9a-f]{40}')


class DamagedError(WeightsError):
    """A file is not what the hub itself says it is."""


@dataclass(frozen=True)
class Record:
    """A file as it was first fetched.

    Attributes:
        sha256: Of its bytes.
        size: Bytes.
        commit: Of the repository.
        accepted: The person took it although it contradicts the catalogue.
    """

    sha256: str
    size: int
    commit: str
    accepted: bool = False


def records_path(cache: Path) -> Path:
    """The file of records that belongs to a cache folder."""
    named = os.environ.get('MMVIDEO_HASHES')
    return Path(named).expanduser() if named else cache.with_name(f'{cache.name}.sha256.json')


def check_file(
    path: Path,
    cache: Path,
    repo: str,
    name: str,
    revision: str | None,
    commit: str,
    etag: str | None,
    accept: bool = False,
) -> Record:
    """Compare a file with all that is known of it, and record it where it is new.

    Args:
        path: The file, under whatever name.
        cache: The cache folder, which the records belong to.
        repo: Hub id.
        name: Path inside the repository.
        revision: As asked for; a branch may move, so each has records of its own.
        commit: What the revision stands for.
        etag: The hub's own hash: sha256 of a large file, git's of a small one.
        accept: Take a file that differs from the catalogue or the record, and record that.

    Raises:
        DamagedError: The file is not what the hub says.
        WeightsError: It is another than the one that is published or recorded.
    """
    found = Record(sha256(path), path.stat().st_size, commit, accept)
    _check_hub(path, repo, name, found, etag)
    if not name.endswith(SUFFIXES):  # texts change for good reasons, and run no network
        return found
    key = f'{repo}/{name}@{revision or "main"}'
    known = recorded(cache).get(key)
    if known is not None and known.sha256 == found.sha256:
        return known
    if not accept:
        _check_record(repo, name, found, known)
        _check_catalog(repo, name, found)
    record(cache, key, found)
    return found


def recorded(cache: Path) -> dict[str, Record]:
    """All records of a cache.

    Raises:
        WeightsError: The file of records is damaged.
    """
    path = records_path(cache)
    if not path.is_file():
        return {}
    try:
        return {key: Record(**value) for key, value in read_json(path).items()}
    except TypeError as error:
        raise WeightsError(
            f'{path} holds no records of hashes ({error}); delete it to record anew'
        ) from None


def record(cache: Path, key: str, found: Record) -> None:
    """Add or replace one record; the others stay as they are on the disk now."""
    from huggingface_hub.utils import WeakFileLock

    path = records_path(cache)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(f'{path}.lock'):
            _write(path, {**recorded(cache), key: found})
    except OSError as error:
        raise WeightsError(
            f'the hash of {key} cannot be recorded in {path} ({error}); name a file that can be '
            'written with the environment variable MMVIDEO_HASHES'
        ) from None


def _write(path: Path, records: Mapping[str, Record]) -> None:
    content = {key: asdict(value) for key, value in sorted(records.items())}
    write_text(path, json.dumps(content, indent=1) + '\n')


def _check_hub(path: Path, repo: str, name: str, found: Record, etag: str | None) -> None:
    """Against the hash that the hub itself gives."""
    if etag and _SHA256.fullmatch(etag):
        actual = found.sha256
    elif etag and _GIT.fullmatch(etag):
        actual = _git_hash(path)
    else:
        return
    if actual != etag:
        raise DamagedError(
            f'{name} of {repo} is damaged: its hash is {actual}, the hub says {etag} '
            f'({found.size} bytes in {path})'
        )


def _git_hash(path: Path) -> str:
    """The hash by which git knows a file; only small ones have it on the hub."""
    content = path.read_bytes()
    header = f'blob {len(content)}\0'.encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def _check_record(repo: str, name: str, found: Record, known: Record | None) -> None:
    if known is not None:
        raise WeightsError(
            f'{name} of {repo} has changed: it is now {found.size} bytes with sha256 '
            f'{found.sha256} (commit {found.commit}), and was {known.size} bytes with sha256 '
            f'{known.sha256} (commit {known.commit}) when it was first used. {_ways(repo, name)} '
            f"or stay with the old one: revision='{known.commit}'"
        )


def _check_catalog(repo: str, name: str, found: Record) -> None:
    known = known_versions(repo, name)
    if known and not any(version.fits(found.size, found.sha256) for version in known):
        said = ' or '.join(
            f'{version.size or "any number of"} bytes with sha256 {version.sha256 or "unknown"}'
            for version in known
        )
        raise WeightsError(
            f'{name} of {repo} is not the published file: it is {found.size} bytes with sha256 '
            f'{found.sha256}, expected {said}. {_ways(repo, name)}'
        )


def _ways(repo: str, name: str) -> str:
    return f'If you trust the new one: `python tools/download.py {repo} {name} --accept-change`'

"""One file from the hub into the hub's own cache: resumed, verified, then given its name.

The bytes go to ``blobs/HASH.incomplete`` and stay there when the connection breaks or the process
dies; the next call goes on behind them. Only a whole file with the right hash becomes
``blobs/HASH``; the link below ``snapshots`` is made by huggingface_hub itself, so the layout is
the one that every other program expects. One process fetches at a time, under the hub's own lock.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from mmvideo.checkpoints.files import publish, write_text
from mmvideo.checkpoints.hashes import DamagedError, check_file
from mmvideo.errors import WeightsError

Report = Callable[[str, int, 'int | None'], None]
# What the client library raises beside OSError when there is no connection; it changed its own
# client (requests, httpx) over time.
_CLIENTS = ('HTTPError', 'RequestException')
NETWORK_ERRORS: tuple[type[BaseException], ...] = (
    OSError,
    *(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ in _CLIENTS),
)
# It becomes the name of a file.
_ETAG = re.compile(r'[0-9A-Za-z][0-9A-Za-z_-]{0,127}')
_COMMIT = re.compile(r'[0-9a-f]{40}')


class BrokenDownloadError(WeightsError):
    """The connection broke while a file was fetched; its bytes so far are kept."""


@dataclass(frozen=True)
class Remote:
    """A file on the hub: its commit, hash and size."""

    repo: str
    name: str
    commit: str
    etag: str
    size: int | None

    @property
    def url(self) -> str:
        """Where its bytes are, at this very commit."""
        return hf_hub_url(self.repo, self.name, revision=self.commit)


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """The cache folder in use: ``HF_HUB_CACHE``, or ``hub`` below ``HF_HOME``."""
    return Path(cache_dir or constants.HF_HUB_CACHE).expanduser()


def download(
    repo: str,
    name: str,
    revision: str | None = None,
    *,
    cache_dir: str | Path | None = None,
    accept: bool = False,
    report: Report | None = None,
) -> Path:
    """Fetch a file of a hub repository into the cache.

    Args:
        repo: Hub id.
        name: Path inside the repository.
        revision: Branch, tag or commit; None is the newest.
        cache_dir: In place of ``HF_HUB_CACHE``.
        accept: Take a weight file although its hash is another than the known one.
        report: Called with ``(name, bytes so far, bytes in all or None)``.

    Returns:
        The link below ``snapshots``.

    Raises:
        WeightsError: It broke off, arrived damaged, or is another file than the known one; or the
            disk is full.
        OSError: As huggingface_hub raises it: offline, no such file, repository or revision.
    """
    cache = cache_folder(cache_dir)
    remote = look_up(repo, name, revision)
    folder = cache / repo_folder_name(repo_id=repo, repo_type='model')
    blob = folder / 'blobs' / remote.etag
    lock = cache / '.locks' / folder.name / f'{remote.etag}.lock'
    for parent in (blob.parent, lock.parent):
        parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            _fetch(remote, blob, report)
            _accept_blob(remote, blob, cache, revision, accept)
    link = Path(hf_hub_download(repo, name, revision=remote.commit, cache_dir=cache))
    if not _COMMIT.fullmatch(revision or 'main'):
        write_text(folder / 'refs' / (revision or 'main'), remote.commit)
    return link


def look_up(repo: str, name: str, revision: str | None) -> Remote:
    """Ask the hub for a file's commit, hash and size."""
    url = hf_hub_url(repo, name, revision=revision)
    found = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    if not (found.commit_hash and _COMMIT.fullmatch(found.commit_hash)):
        raise WeightsError(
            f'{url} is answered by something that is no hub: no commit is named (a proxy or a '
            'login page in between?)'
        )
    if not (found.etag and _ETAG.fullmatch(found.etag)):
        raise WeightsError(f'{url}: the hub gives no usable hash ({found.etag!r})')
    return Remote(repo, name, found.commit_hash, found.etag, found.size)


def partial_path(blob: Path) -> Path:
    """Where the bytes of an unfinished download wait."""
    return blob.with_name(f'{blob.name}.incomplete')


def _fetch(remote: Remote, blob: Path, report: Report | None) -> None:
    """All bytes into the partial file, behind those that are there."""
    partial = partial_path(blob)
    have = partial.stat().st_size if partial.exists() else 0
    if remote.size is None or have > remote.size:  # nothing to compare with, or not of this file
        partial.unlink(missing_ok=True)
        have = 0
    _check_space(remote, partial.parent, have)
    with open(partial, 'ab') as file:
        counted = _Counted(file, remote, have, report)
        try:
            http_get(
                remote.url,
                counted,  # type: ignore[arg-type]
                resume_size=have,
                headers=build_hf_headers(),
                expected_size=remote.size,
                displayed_filename=remote.name,
            )
        except NETWORK_ERRORS as error:
            file.flush()
            raise _broken(remote, partial, error) from error
    if remote.size is not None and partial.stat().st_size != remote.size:
        raise _broken(remote, partial, OSError('the server sent another number of bytes'))


def _broken(remote: Remote, partial: Path, error: BaseException) -> WeightsError:
    """The message for a download that ended early; what cannot be resumed is deleted."""
    have = partial.stat().st_size
    if remote.size is None or have > remote.size:
        partial.unlink()
        have = 0
    return BrokenDownloadError(
        f'{remote.name} of {remote.repo}: {have} of {remote.size or "an unknown number of"} bytes '
        f'are here, then it ended with {type(error).__name__}: {str(error)[:200]}. The next call '
        'goes on behind them'
    )


def _accept_blob(
    remote: Remote, blob: Path, cache: Path, revision: str | None, accept: bool
) -> None:
    """Give a whole file its name if its hash is right; one with a wrong hash is deleted."""
    partial = partial_path(blob)
    try:
        check_file(
            partial,
            cache,
            remote.repo,
            remote.name,
            revision,
            remote.commit,
            remote.etag,
            accept,
        )
    except DamagedError:
        partial.unlink()
        raise
    publish(partial, blob)


def _check_space(remote: Remote, folder: Path, have: int) -> None:
    free = shutil.disk_usage(folder).free
    if remote.size is not None and free < remote.size - have:
        raise WeightsError(
            f'{remote.name} of {remote.repo} needs {remote.size - have} bytes more, and the disk '
            f'of {folder} has {free}; make room, or name another cache with HF_HOME'
        )


class _Counted:
    """A file that reports how much was written to it."""

    def __init__(self, file: BinaryIO, remote: Remote, have: int, report: Report | None) -> None:
        self._file = file
        self._remote = remote
        self._report = report
        self._done = have

    def write(self, data: bytes) -> int:
        count = self._file.write(data)
        self._done += count
        if self._report is not None:
            self._report(self._remote.name, self._done, self._remote.size)
        return count

    def truncate(self, size: int | None = None) -> int:
        self._done = 0  # the server sends the whole file again
        return self._file.truncate(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

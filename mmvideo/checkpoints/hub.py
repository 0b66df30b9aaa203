"""Files of the Hugging Face Hub: fetched once, afterwards from the local cache.

``HF_HUB_OFFLINE``, ``HF_HOME`` and the token of ``hf auth login`` mean what they mean to
huggingface_hub. A mistake ends in one WeightsError that names the files and the way around. A
source is a hub id, or ``catalog://NAME`` that stands for one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from mmvideo.checkpoints.catalog import is_listed, place
from mmvideo.checkpoints.files import missing, read_json
from mmvideo.checkpoints.hashes import Record, check_file
from mmvideo.checkpoints.transfer import NETWORK_ERRORS, Report, cache_folder, download
from mmvideo.errors import WeightsError


class HubUnreachableError(WeightsError):
    """The hub could not be asked: no network, or offline mode."""


class AbsentError(WeightsError):
    """The repository has none of the files."""


def fetch(source: str, subfolder: str | None, names: Sequence[str], revision: str | None) -> Path:
    """The cached path of the first of ``names`` that the repository has; fetched where needed.

    Raises:
        WeightsError: The hub cannot be reached, or has no such repository, revision or file.
    """
    found = find(source, subfolder, names, revision)
    if found is None:
        where = f'{source!r}' + (f', folder {subfolder!r},' if subfolder else '')
        raise AbsentError(f'the hub repository {where} has none of: {", ".join(names)}')
    return found


def find(
    source: str,
    subfolder: str | None,
    names: Sequence[str],
    revision: str | None,
    optional: bool = False,
) -> Path | None:
    """As ``fetch``, but None where the repository has none of ``names``.

    With ``optional`` also where the hub cannot be asked and the cache has none: a cache filled by
    another program holds no record of the files that a repository lacks.
    """
    repo, folder, revision = place(source, subfolder, revision)
    cached = _cached(repo, folder, names, revision)
    if cached is not None:
        return cached
    try:
        for name in names:
            try:
                return download(repo, _inside(folder, name), revision)
            except LocalEntryNotFoundError:
                raise  # offline: the others will not be there either
            except EntryNotFoundError:
                continue  # the next candidate of the list
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise WeightsError(_refused(source, revision, error)) from error
    except NETWORK_ERRORS as error:
        if optional:
            return None
        raise HubUnreachableError(_unreachable(source, folder, names)) from error
    return None


def fetch_file(
    repo: str,
    name: str,
    revision: str | None = None,
    *,
    cache_dir: str | Path | None = None,
    accept: bool = False,
    report: Report | None = None,
) -> Path:
    """One file of a repository, from the cache or the hub; see ``transfer.download``.

    With ``accept`` the hub is asked also for a file that is here: it may have a newer one.
    """
    here = cached_file(repo, name, revision, cache_dir)
    if here is not None and not accept:
        return here
    try:
        return download(repo, name, revision, cache_dir=cache_dir, accept=accept, report=report)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise WeightsError(_refused(repo, revision, error)) from error
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise HubUnreachableError(_unreachable(repo, None, [name])) from error
        raise WeightsError(f'the hub repository {repo!r} has no file {name!r}') from error
    except NETWORK_ERRORS as error:
        raise HubUnreachableError(_unreachable(repo, None, [name])) from error


def verify_file(
    repo: str,
    name: str,
    revision: str | None = None,
    *,
    cache_dir: str | Path | None = None,
    accept: bool = False,
) -> Record:
    """Hash a cached file again and compare it with all that is known; see ``check_file``.

    Raises:
        WeightsError: It is not here, damaged, or another than the known one.
    """
    link = cached_file(repo, name, revision, cache_dir)
    if link is None:
        raise WeightsError(
            f'{name} of {repo} is not here; fetch it with `python tools/download.py {repo} {name}`'
        )
    snapshots = link.parents[len(Path(name).parts)]
    commit = link.relative_to(snapshots).parts[0]
    # In the hub's layout a file is a link to a blob, which has its hash as its name.
    etag = Path(os.readlink(link)).name if link.is_symlink() else None
    return check_file(link, cache_folder(cache_dir), repo, name, revision, commit, etag, accept)


def cached_file(
    repo: str, name: str, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path | None:
    """Where a file of a repository is in the cache; None where it is not."""
    try:
        found = try_to_load_from_cache(
            repo, name, cache_dir=cache_folder(cache_dir), revision=revision
        )
    except HFValidationError as error:
        raise WeightsError(_refused(repo, revision, error)) from error
    return Path(found) if isinstance(found, str) else None


def cached_snapshot(
    repo: str, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path | None:
    """The folder of a repository's files in the cache; None where there is none."""
    folder = cache_folder(cache_dir) / repo_folder_name(repo_id=repo, repo_type='model')
    reference = folder / 'refs' / (revision or 'main')
    commit = reference.read_text(encoding='utf-8') if reference.is_file() else revision or ''
    snapshot = folder / 'snapshots' / commit
    return snapshot if commit and snapshot.is_dir() else None


def plan(source: str, subfolder: str | None, names: Sequence[str], revision: str | None) -> list:
    """The files that ``fetch`` would get, as ``PlannedFile``, without getting the weights."""
    from mmvideo.checkpoints.sources import PlannedFile

    source, subfolder, revision = place(source, subfolder, revision)
    cached = _cached(source, subfolder, names, revision)
    sizes = sizes_of(source, revision) or {}
    chosen = _chosen(cached, sizes, subfolder, names)
    files = [_inside(subfolder, 'config.json'), *chosen]
    found = [(name, _cached(source, None, [name], revision)) for name in files]
    return [
        PlannedFile(
            name,
            path.stat().st_size if path else sizes.get(name),
            path is not None,
            path,
        )
        for name, path in found
        if path or not sizes or name in sizes
    ]


def _chosen(
    cached: Path | None, sizes: dict[str, int], subfolder: str | None, names: Sequence[str]
) -> list[str]:
    """Names inside the repository: the cached candidate, else the first that the hub lists."""
    listed = [name for name in names if _inside(subfolder, name) in sizes]
    name = cached.name if cached else (listed or list(names))[0]
    if not name.endswith('.json'):
        return [_inside(subfolder, name)]
    parts = [_inside(subfolder, name)]
    if cached:
        table = read_json(cached).get('weight_map', {})
        return parts + [_inside(subfolder, shard) for shard in sorted(set(table.values()))]
    stem = _inside(subfolder, name.split('.')[0])
    return parts + sorted(n for n in sizes if n.startswith(f'{stem}-'))


def sizes_of(repo: str, revision: str | None) -> dict[str, int] | None:
    """Bytes of each file of a repository; None where the hub cannot be asked."""
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise WeightsError(_refused(repo, revision, error)) from error
    except NETWORK_ERRORS:  # no network, or offline mode: a plan without sizes is still a plan
        return None
    return {entry.rfilename: entry.size or 0 for entry in info.siblings or []}


def _cached(
    repo: str, subfolder: str | None, names: Sequence[str], revision: str | None
) -> Path | None:
    found = (cached_file(repo, _inside(subfolder, name), revision) for name in names)
    return next((path for path in found if path is not None), None)


def _inside(subfolder: str | None, name: str) -> str:
    return f'{subfolder}/{name}' if subfolder else name


def _unreachable(source: str, subfolder: str | None, names: Sequence[str]) -> str:
    wanted = (
        _inside(subfolder, names[0])
        if len(names) == 1
        else ' or '.join(_inside(subfolder, name) for name in names[:2])
    )
    if is_listed(source):
        name = source.removeprefix('catalog://')
        return (
            f'{source!r} stands for the hub repository {place(source, None, None).repo!r}; its '
            f'{wanted} is not here, and the hub cannot be reached. Fetch it on a machine with a '
            f'network, `python tools/download.py {name}`, and copy its cache (HF_HOME); or give '
            'the path of a folder that holds the files as from_pretrained.' + _offline()
        )
    return (
        f'{source!r} is no folder here, and the hub cannot be reached to fetch {wanted} from the '
        f'repository of that name.{_neighbour(source)} Give the path of a folder that holds the '
        'files as from_pretrained, or fetch them on a machine with a network (`python '
        f'tools/download.py {source}`) and copy its cache (HF_HOME).' + _offline()
    )


def _offline() -> str:
    hint = ' HF_HUB_OFFLINE is set here: without it the hub is asked.'
    return hint if constants.HF_HUB_OFFLINE else ''


def _refused(source: str, revision: str | None, error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return (
            f'the hub repository {source!r} is gated: accept its terms on its page and log in with '
            '`hf auth login`, or give a folder as from_pretrained'
        )
    if isinstance(error, RevisionNotFoundError):
        return f'the hub repository {source!r} has no revision {revision!r}'
    return (
        f'{source!r} is neither a folder here nor a repository on the hub.{_neighbour(source)} '
        'Expected a folder, package://NAME, catalog://NAME, or a hub id as owner/name (a private '
        'one needs `hf auth login`)'
    )


def _neighbour(source: str) -> str:
    message = missing(Path(source))
    return message[message.index('does not exist.') + len('does not exist.') :]

"""Files of the Hugging Face Hub: fetched once, afterwards from the local cache.

``HF_HUB_OFFLINE``, ``HF_HOME`` and the token of ``hf auth login`` mean what they mean to
huggingface_hub. A mistake ends in one WeightsError that names the files and the way around.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mmvideo.checkpoints.files import missing, read_json
from mmvideo.errors import WeightsError


class HubUnreachableError(WeightsError):
    """The hub could not be asked: no network, or offline mode."""


def fetch(source: str, subfolder: str | None, names: Sequence[str], revision: str | None) -> Path:
    """The cached path of the first of ``names`` that the repository has; fetched where needed.

    Raises:
        WeightsError: The hub cannot be reached, or has no such repository, revision or file.
    """
    found = find(source, subfolder, names, revision)
    if found is None:
        where = f'{source!r}' + (f', folder {subfolder!r},' if subfolder else '')
        raise WeightsError(f'the hub repository {where} has none of: {", ".join(names)}')
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
    cached = _cached(source, subfolder, names, revision)
    if cached is not None:
        return cached
    for name in names:
        try:
            return Path(hf_hub_download(source, name, subfolder=subfolder, revision=revision))
        except LocalEntryNotFoundError as error:  # offline: the others will not be there either
            unreachable: Exception = error
            break
        except EntryNotFoundError:
            continue  # the next candidate of the list
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise WeightsError(_refused(source, revision, error)) from error
        except OSError as error:
            unreachable = error
            break
    else:
        return None
    if optional:
        return None
    raise HubUnreachableError(_unreachable(source, subfolder, names)) from unreachable


def plan(source: str, subfolder: str | None, names: Sequence[str], revision: str | None) -> list:
    """The files that ``fetch`` would get, as ``PlannedFile``, without getting the weights."""
    from mmvideo.checkpoints.sources import PlannedFile

    cached = _cached(source, subfolder, names, revision)
    sizes = _sizes(source, revision)
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


def _sizes(source: str, revision: str | None) -> dict[str, int]:
    """Bytes of each file of a repository; empty where the hub cannot be asked."""
    try:
        info = HfApi().model_info(source, revision=revision, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise WeightsError(_refused(source, revision, error)) from error
    except OSError:  # no network, or offline mode: a plan without sizes is still a plan
        return {}
    return {entry.rfilename: entry.size or 0 for entry in info.siblings or []}


def _cached(
    source: str, subfolder: str | None, names: Sequence[str], revision: str | None
) -> Path | None:
    for name in names:
        try:
            found = try_to_load_from_cache(source, _inside(subfolder, name), revision=revision)
        except HFValidationError as error:
            raise WeightsError(_refused(source, revision, error)) from error
        if isinstance(found, str):
            return Path(found)
    return None


def _inside(subfolder: str | None, name: str) -> str:
    return f'{subfolder}/{name}' if subfolder else name


def _unreachable(source: str, subfolder: str | None, names: Sequence[str]) -> str:
    wanted = (
        _inside(subfolder, names[0])
        if len(names) == 1
        else ' or '.join(_inside(subfolder, name) for name in names[:2])
    )
    return (
        f'{source!r} is no folder here, and the hub cannot be reached to fetch {wanted} from the '
        f'repository of that name.{_neighbour(source)} Give the path of a folder that holds the '
        'files as from_pretrained, or fetch them on a machine with a network and copy its cache '
        '(HF_HOME).'
    )


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
        'Expected a folder, package://NAME, or a hub id as owner/name (a private one needs '
        '`hf auth login`)'
    )


def _neighbour(source: str) -> str:
    message = missing(Path(source))
    return message[message.index('does not exist.') + len('does not exist.') :]

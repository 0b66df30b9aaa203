"""Fetch public weights ahead of their use, list them, and verify what is here.

Files go into the hub's own cache (``HF_HOME``, ``HF_HUB_CACHE``), where every config and every
other program finds them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmvideo.apis.progress import duration, size
from mmvideo.checkpoints.catalog import PREFIX, Entry, entries, find_entry, place
from mmvideo.checkpoints.sources import WEIGHT_FILES, with_variant
from mmvideo.errors import InputError, WeightsError, nearest

LINES = 10
_TEXTS = ('.json', '.txt', '.model')
# Folders of a pipeline that nothing here reads.
_UNUSED = ('safety_checker',)


@dataclass(frozen=True)
class Wanted:
    """Files of one repository.

    Attributes:
        repo: Hub id.
        revision: Branch, tag or commit; None is the newest.
        files: Path inside the repository to bytes, None where nobody could be asked.
    """

    repo: str
    revision: str | None
    files: dict[str, int | None]


class Lines:
    """Progress of one file after the other as plain lines, ten a file.

    Args:
        write: Takes a line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._name = ''
        self._first = 0
        self._shown = 0
        self._start = 0.0

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """What ``transfer.download`` calls after each block."""
        if name != self._name:
            self._name, self._first, self._shown = name, done, -1
            self._start = time.monotonic()
        step = done * LINES // total if total else done // 10**8
        if step <= self._shown:
            return
        self._shown = step
        if not total:
            self._write(f'{name}: {size(done)}')
            return
        spent = time.monotonic() - self._start
        rate = (done - self._first) / spent if spent > 0 else 0.0
        left = f', {duration((total - done) / rate)} left' if rate and done < total else ''
        self._write(f'{name}: {size(done)} of {size(total)} ({100 * done // total} %){left}')


def wanted(
    name: str,
    file: str | None = None,
    *,
    variant: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Wanted:
    """The files that a name means.

    Args:
        name: A name of the catalogue, with or without ``catalog://``, or a hub id.
        file: One file of the repository, in place of those that are read.
        variant: Such as 'fp16'.
        revision: Goes before the catalogue's.
        cache_dir: In place of ``HF_HUB_CACHE``.

    Raises:
        WeightsError: No such name, repository or file; or it cannot be told without the hub.
    """
    entry = None if _is_hub_id(name) else find_entry(name)
    repo, _, revision = place(PREFIX + entry.name if entry else name, None, revision)
    file = file or (entry.file if entry else None)
    if file and variant:
        raise InputError(f'--variant {variant} chooses among files, and {file} is one already.')
    if file and entry and file == entry.file:
        return Wanted(repo, revision, {file: entry.size})
    from mmvideo.checkpoints import hub

    listed: dict[str, int | None] | None = hub.sizes_of(repo, revision)  # type: ignore[assignment]
    if listed is None:
        listed = dict.fromkeys(_cached_files(repo, revision, cache_dir))
    if not listed:
        raise WeightsError(_nothing_known(name, repo))
    if file:
        if file not in listed:
            raise WeightsError(f'{repo} has no file {file!r}.{nearest(file, listed)}')
        return Wanted(repo, revision, {file: listed[file]})
    chosen = choose(listed, entry.parts if entry else (), variant)
    if not any(PurePosixPath(path).suffix not in _TEXTS for path in chosen):
        shown = ', '.join(sorted(listed)[:12])
        what = f'no weights of the variant {variant!r}' if variant else 'no weights by usual names'
        raise WeightsError(f'{repo} has {what}; name one of its files: {shown}')
    return Wanted(repo, revision, {path: listed[path] for path in chosen})


def choose(listed: Iterable[str], parts: Iterable[str], variant: str | None) -> list[str]:
    """The files that mmvideo reads: the texts of each part, and its best weights.

    Args:
        listed: All files of a repository.
        parts: Folders; empty takes the root and every folder with a text that says what it is.
        variant: Such as 'fp16'; a part without weights is not asked for it.
    """
    names = sorted(listed)
    folders = list(parts) or sorted({_folder(n) for n in names if n.endswith('.json')})
    chosen: list[str] = []
    for folder in folders:
        if folder in _UNUSED:
            continue
        inside = [n for n in names if _folder(n) == folder]
        chosen += [n for n in inside if n.endswith(_TEXTS) and '.index.' not in n]
        chosen += _weights(inside, variant)
    if parts and 'model_index.json' in names:
        chosen.insert(0, 'model_index.json')
    return list(dict.fromkeys(chosen))


def download(
    name: str,
    file: str | None = None,
    *,
    variant: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    accept_change: bool = False,
    report: Callable[[str, int, int | None], None] | None = None,
) -> list[Path]:
    """Fetch what a name means; files that are here are not fetched again.

    Args:
        name: As ``wanted`` takes it, like the next four.
        file: One file.
        variant: Such as 'fp16'.
        revision: Branch, tag or commit.
        cache_dir: In place of ``HF_HUB_CACHE``.
        accept_change: Take a file whose hash is another than the known one, and record it.
        report: Called with name, bytes so far and bytes in all.

    Returns:
        The files in the cache.

    Raises:
        WeightsError: See ``transfer.download``; what is missing offline is named.
    """
    from mmvideo.checkpoints import hub

    asked = wanted(name, file, variant=variant, revision=revision, cache_dir=cache_dir)
    return [
        hub.fetch_file(
            asked.repo,
            path,
            asked.revision,
            cache_dir=cache_dir,
            accept=accept_change,
            report=report,
        )
        for path in asked.files
    ]


def verify(
    name: str,
    file: str | None = None,
    *,
    variant: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    accept_change: bool = False,
) -> list[str]:
    """Hash what is here again and compare it with all that is known; asks no network for hashes.

    Returns:
        A line for each file.

    Raises:
        WeightsError: Files that are missing or wrong, all in one message.
    """
    from mmvideo.checkpoints import hub

    asked = wanted(name, file, variant=variant, revision=revision, cache_dir=cache_dir)
    lines, faults = [], []
    for path in asked.files:
        try:
            found = hub.verify_file(
                asked.repo, path, asked.revision, cache_dir=cache_dir, accept=accept_change
            )
        except WeightsError as error:
            faults.append(str(error))
        else:
            lines.append(f'{path}: {size(found.size)}, sha256 {found.sha256}')
    if faults:
        raise WeightsError('; '.join(faults))
    return lines


def list_catalog(cache_dir: str | Path | None = None) -> list[str]:
    """A line for each name of the catalogue."""
    known = entries()
    width = max(map(len, known))
    return [f'{name:{width}}  {_described(entry)}' for name, entry in known.items()]


def list_files(asked: Wanted, cache_dir: str | Path | None = None) -> list[str]:
    """A line for each file: its size, and whether it is here."""
    from mmvideo.checkpoints import hub

    lines = [f'{asked.repo}, {asked.revision or "newest"}']
    for path, count in asked.files.items():
        here = hub.cached_file(asked.repo, path, asked.revision, cache_dir)
        count = here.stat().st_size if here else count
        known = 'unknown size' if count is None else size(count)
        lines.append(f'  {path}: {known}, {"here" if here else "to be fetched"}')
    return lines


def _described(entry: Entry) -> str:
    facts = [
        entry.repo + (f'/{entry.file}' if entry.file else ''),
        'a folder' if not entry.file else size(entry.size) if entry.size else 'size unknown',
        f'licence {entry.licence}' if entry.licence else 'licence: see its page',
        entry.note,
    ]
    return '; '.join(fact for fact in facts if fact)


def _is_hub_id(name: str) -> bool:
    return '/' in name and not name.startswith(PREFIX)


def _folder(name: str) -> str:
    parent = PurePosixPath(name).parent.as_posix()
    return '' if parent == '.' else parent


def _weights(inside: list[str], variant: str | None) -> list[str]:
    """The best weights among the files of a folder, with all their shards."""
    by_name = {PurePosixPath(path).name: path for path in inside}
    for plain in WEIGHT_FILES:
        name = with_variant(plain, variant)
        if name not in by_name:
            continue
        if not name.endswith('.json'):
            return [by_name[name]]
        stem, kind = plain.split('.')[:2]
        return [by_name[name]] + [
            path
            for shard, path in by_name.items()
            if shard.startswith(stem) and shard.endswith(f'.{kind}') and '-of-' in shard
            and (variant in shard if variant else shard.count('.') == 1)
        ]  # fmt: skip
    return []


def _cached_files(repo: str, revision: str | None, cache_dir: str | Path | None) -> list[str]:
    from mmvideo.checkpoints import hub

    folder = hub.cached_snapshot(repo, revision, cache_dir)
    if folder is None:
        return []
    return [p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()]


def _nothing_known(name: str, repo: str) -> str:
    return (
        f'the hub cannot be reached, and the cache has nothing of {repo}. Run `python '
        f'tools/download.py {name}` on a machine with a network (without --offline and '
        'HF_HUB_OFFLINE), then copy its cache (HF_HOME) here'
    )

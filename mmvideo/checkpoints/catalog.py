"""Public weights by short names: ``catalog://pia`` is a hub repository, and perhaps one file of it.

The facts stand in ``catalog.json``: repository, file, revision, licence, base model, family, and
the size and sha256 where they are published. What is not known is null, never guessed; the hash of
such a file is recorded when it is first fetched (``hashes``). A hash may be given by its first
digits only. Several known versions mean that the authors uploaded the file again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mmvideo.errors import WeightsError, nearest

PREFIX = 'catalog://'
_DATA = Path(__file__).with_name('catalog.json')


@dataclass(frozen=True)
class Known:
    """A published version of a file: bytes, and the first hexadecimal digits of its sha256."""

    size: int | None
    sha256: str | None

    def fits(self, size: int, sha256: str) -> bool:
        """Whether a file of this size and hash can be this version."""
        return self.size in (None, size) and sha256.startswith(self.sha256 or '')


@dataclass(frozen=True)
class Entry:
    """Public weights under a name.

    Attributes:
        name: What ``catalog://`` is followed by.
        family: What the weights are, such as a key of ``layouts.FAMILIES``.
        repo: Hub id.
        file: The one file that is meant; None for a folder in the layout of diffusers.
        parts: Folders of the repository that are meant; empty for its root.
        revision: Commit, or None for the newest.
        licence: As the hub names it; None where the repository states none, or was not seen.
        base: 'sd15' or 'sdxl', the image model it goes with; None for models by themselves.
        known: The published versions of ``file``; empty where none is known.
        note: For people.
    """

    name: str
    family: str
    repo: str
    file: str | None = None
    parts: tuple[str, ...] = ()
    revision: str | None = None
    licence: str | None = None
    base: str | None = None
    known: tuple[Known, ...] = ()
    note: str = ''

    @property
    def size(self) -> int | None:
        """Bytes of the newest known version of ``file``."""
        return self.known[0].size if self.known else None


class Place(NamedTuple):
    """Where on the hub something is."""

    repo: str
    subfolder: str | None
    revision: str | None


@cache
def entries() -> dict[str, Entry]:
    """The catalogue by name, in alphabetical order."""
    content = json.loads(_DATA.read_text(encoding='utf-8'))
    return {name: _entry(name, facts) for name, facts in content.items()}


def is_listed(source: object) -> bool:
    """Whether a source is written as ``catalog://NAME``."""
    return isinstance(source, str) and source.startswith(PREFIX)


def find_entry(source: str) -> Entry:
    """The entry of ``catalog://NAME`` or ``NAME``.

    Raises:
        WeightsError: There is none; names the nearest.
    """
    name = source.removeprefix(PREFIX)
    known = entries()
    if name not in known:
        by_file = [e.name for e in known.values() if e.file and Path(e.file).name == name]
        alike = {other.lower(): other for other in known}
        hint = by_file[0] if by_file else alike.get(name.lower())
        said = f' Did you mean {hint!r}?' if hint else nearest(name, known)
        raise WeightsError(
            f'{source!r}: the catalogue has no {name!r}.{said} '
            '`python tools/download.py --list` shows all names'
        )
    return known[name]


def place(source: str, subfolder: str | None, revision: str | None) -> Place:
    """Where on the hub a source is: a hub id is itself, ``catalog://NAME`` is looked up.

    A revision that is asked for goes before the catalogue's.
    """
    if not is_listed(source):
        return Place(source, subfolder, revision)
    entry = find_entry(source)
    if len(entry.parts) == 1:  # the name means this folder
        subfolder = '/'.join([*entry.parts, *([subfolder] if subfolder else [])])
    return Place(entry.repo, subfolder, revision or entry.revision)


def known_versions(repo: str, name: str) -> tuple[Known, ...]:
    """What is published about a file of a repository; empty where nothing is known."""
    for entry in entries().values():
        if (entry.repo, entry.file) == (repo, name):
            return entry.known
    return ()


def _entry(name: str, facts: dict) -> Entry:
    known = tuple(Known(version['size'], version['sha256']) for version in facts['known'])
    return Entry(name, **{**facts, 'known': known, 'parts': tuple(facts.get('parts', ()))})

"""Which files a call writes, decided before any weight is read."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmvideo.errors import ConfigError, InputError
from mmvideo.media.writers import check_fps, check_output, make_folder, picture_path, safe_stem

DEFAULT_FPS = 8
DEFAULT_FOLDER = 'outputs'


@dataclass(frozen=True)
class Target:
    """A file to write; ``overwrite`` is for names that the user chose.

    A folder that the user did not name is made when writing begins, see ``make_folder``.
    """

    path: Path
    overwrite: bool

    def make_folder(self) -> None:
        """Make the folder, unless it is one that must be there."""
        if not self.overwrite:
            make_folder(self.path.parent)


def choose_targets(
    out: str | Path | None,
    name: str,
    infer: Mapping[str, Any],
    suffixes: Sequence[str],
    single: bool,
) -> list[list[Target]]:
    """The files of each job.

    Args:
        out: a file, a folder, or None for what the config or its name says.
        name: of the config.
        infer: the config's own ``infer``, of which ``out`` and ``formats`` are read.
        suffixes: what distinguishes the jobs, see ``Job``.
        single: the jobs give single pictures, by default a png.

    Raises:
        InputError: a place that cannot be written to.
    """
    if out is not None and not _is_folder(out):
        path = check_output(out)
        return [[_named(path, suffix)] for suffix in suffixes]
    formats = ['.png'] if single else _formats(infer)
    stem = safe_stem(name)
    if out is None:
        # The command's own default folder is made later; one that a user names must be there.
        wanted = Path(infer.get('out') or f'{DEFAULT_FOLDER}/{stem}{formats[0]}')
        _check_folder(wanted.parent)
        folder, stem = wanted.parent, wanted.stem
        formats = formats if single or 'formats' in infer else [wanted.suffix]
    else:
        folder = Path(out)
    taken: set[Path] = set()
    chosen = []
    for suffix in suffixes:
        paths = _free_together(folder / f'{stem}{suffix}', formats, taken)
        taken.update(paths)
        made = folder.is_dir()
        chosen.append([Target(check_output(p, made), overwrite=False) for p in paths])
    return chosen


def choose_fps(
    fps: float | None, infer: Mapping[str, Any], targets: Sequence[Sequence[Target]]
) -> float:
    """The rate asked for, the config's, or 8; checked against every format."""
    chosen = infer.get('fps', DEFAULT_FPS) if fps is None else fps
    if isinstance(chosen, bool) or not isinstance(chosen, int | float):
        raise InputError(f'fps={chosen!r}: expected a number of frames a second.')
    for target in itertools.chain.from_iterable(targets):
        check_fps(chosen, target.path.suffix)
    return chosen


def _named(path: Path, suffix: str) -> Target:
    named = path.with_name(f'{path.stem}{suffix}{path.suffix}')
    return Target(check_output(named), overwrite=True)


def _is_folder(out: str | Path) -> bool:
    if str(out).endswith(('/', os.sep)) and not Path(out).is_dir():
        raise InputError(f'{out}: there is no such folder.')
    return Path(out).is_dir()


def _formats(infer: Mapping[str, Any]) -> list[str]:
    formats = infer.get('formats') or ['mp4']
    formats = [formats] if isinstance(formats, str) else list(formats)
    suffixes = [f'.{str(name).removeprefix(".").lower()}' for name in formats]
    known = ('.mp4', '.gif', '.webp', '.png')
    for suffix in suffixes:
        if suffix not in known:
            raise ConfigError(f'infer.formats: {suffix!r} is none of {", ".join(known)}.')
    return suffixes


def _check_folder(folder: Path) -> None:
    """Refuse a folder that could not be made."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = 'cannot be written to' if there.is_dir() else 'is no folder'
        raise InputError(
            f'{folder}: the folder cannot be made, {there} {what}; choose another with --out.'
        )


def _free_together(stem: Path, formats: Sequence[str], taken: set[Path]) -> list[Path]:
    """One number for all formats, so that the files of one video have one name."""
    stems = itertools.chain(
        [stem], (stem.with_name(f'{stem.name}-{i}') for i in itertools.count(1))
    )
    for candidate in stems:
        paths = [candidate.with_name(candidate.name + suffix) for suffix in formats]
        series = picture_path(candidate, 0) if '.png' in formats else None
        if not any(p.exists() or p in taken for p in paths) and not (series and series.exists()):
            return paths
    raise AssertionError('unreachable: there is always a free name')

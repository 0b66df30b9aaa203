"""Tables of clips and captions, and folders that are one."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmvideo.errors import ConfigError, nearest, nearest_beside
from mmvideo.media.clip_file import DEMUXERS

_COLUMN = re.compile(r'\{([^{}]*)\}')


@dataclass(frozen=True)
class Row:
    """A clip: its file below the root, its caption and its numbers."""

    video: str
    caption: str
    numbers: dict[str, float]


def read_table(file: Path, video: str, caption: str, numbers: Sequence[str]) -> list[Row]:
    """The rows of a ``.csv`` or ``.jsonl`` file.

    Args:
        file: the table.
        video: column of a clip's path, or a path with columns in braces.
        caption: column of its caption.
        numbers: columns that are numbers.

    Raises:
        ConfigError: naming the file, the row and what is wrong with it.
    """
    rows = []
    for where, columns in _lines(file):
        parts = _COLUMN.split(video) if '{' in video else ['', video]
        # Every second part is a column.
        parts[1::2] = [_cell(columns, name, where) for name in parts[1::2]]
        told = {name: _number(_cell(columns, name, where), name, where) for name in numbers}
        rows.append(Row(''.join(parts), _cell(columns, caption, where), told))
    if not rows:
        raise ConfigError(f'{file} has no rows: an empty data set.')
    return rows


def rows_beside(root: Path) -> list[Row]:
    """The clips of a folder and of those below, whose captions stand in text files beside them.

    Raises:
        ConfigError: no folder, no clips in it, or one without a caption.
    """
    if not root.is_dir():
        raise ConfigError(f'root: {root} is no folder.{nearest_beside(root)}')
    rows = []
    for clip in sorted(root.rglob('*')):
        if clip.suffix.lower() not in DEMUXERS:
            continue
        text = clip.with_suffix('.txt')
        if not text.is_file():
            raise ConfigError(f'{clip} has no caption: expected {text.name} beside it.')
        said = text.read_text(encoding='utf-8').strip()
        rows.append(Row(str(clip.relative_to(root)), said, {}))
    if not rows:
        raise ConfigError(f'{root} has no clips ({", ".join(DEMUXERS)}): an empty data set.')
    return rows


def _cell(columns: Mapping[str, Any], name: str, where: str) -> str:
    if columns.get(name) is None:
        told = ', '.join(map(str, columns))
        raise ConfigError(f'{where} has no {name!r}, only {told}.{nearest(name, columns)}')
    return str(columns[name])


def _number(text: str, name: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f'{where}: {name} is {text!r}, expected a number.') from None


def _lines(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where it stands, columns) of every row."""
    if not file.is_file():
        raise ConfigError(f'annotations: {file} does not exist.{nearest_beside(file)}')
    if file.suffix not in ('.csv', '.jsonl'):
        raise ConfigError(f'annotations: {file} is no .csv or .jsonl file.')
    try:
        with file.open(encoding='utf-8-sig', newline='') as lines:
            if file.suffix == '.csv':
                for number, row in enumerate(csv.DictReader(lines), 1):
                    yield f'{file}, row {number}', row
                return
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f'{file}, line {number}', _object(line, f'{file}, line {number}')
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f'annotations: {file} cannot be read: {error}') from error


def _object(line: str, where: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f'{where} is no JSON: {error}') from error
    if not isinstance(found, dict):
        raise ConfigError(f'{where} is a {type(found).__name__}, expected an object.')
    return found

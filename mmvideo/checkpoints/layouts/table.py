"""Tables of keys, used in both directions.

A layout is a table of rows ``theirs <-> ours``; ours are the names of diffusers and transformers,
which the models here have. A key that no row matches is an error in either direction, so nothing
is dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from mmvideo.errors import WeightsError

PLACEHOLDERS = {
    'module': r'(?:(?:down|up)_blocks\.\d+|mid_block)\.motion_modules\.\d+',
    'layer': r'\d+',
    'copy': r'\d+',
    'linear': r'to_q|to_k|to_v|to_out\.0',
    'inner': r'net\.0\.proj|net\.2',
    'kind': r'weight|bias',
}
_PIECE = re.compile(r'\{(\w+)\}')
_SHOWN = 5


@dataclass(frozen=True)
class Change:
    """How a tensor's values differ between two layouts, such as 1x1 convolution and linear layer.

    Attributes:
        to_ours: The file's tensor as ours.
        to_theirs: The exact inverse.
    """

    to_ours: Callable[[Tensor], Tensor]
    to_theirs: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One kind of key under two names.

    Attributes:
        theirs: Template in the file's names, with placeholders such as ``{module}``.
        ours: The same key in diffusers' names.
        copies: Values of ``{copy}`` in ``theirs``: the file repeats our one tensor so often.
        parts: Values of ``{part}`` in ``ours``: the file holds ours joined along the first axis, in
            equal parts, such as q, k and v.
        change: How the values differ; None where they do not.
        only_read: Another form of keys that a further row writes.
    """

    theirs: str
    ours: str
    copies: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    change: Change | None = None
    only_read: bool = False


@dataclass(frozen=True)
class Layout:
    """A table of rows, and the two translations that follow from it.

    Attributes:
        name: For messages, such as 'an AnimateDiff motion module'.
        rows: The first that matches a key counts.
        placeholders: Patterns of placeholders beside the common ones, or in their place.
    """

    name: str
    rows: tuple[Row, ...]
    placeholders: Mapping[str, str] = field(default_factory=dict, hash=False)

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate a file's names into diffusers' names.

        Raises:
            WeightsError: A key that the table does not know, or copies that differ.
        """
        found: dict[str, Tensor] = {}
        unknown = []
        for key, value in tensors.items():
            match = self._theirs.find(key)
            if match is None:
                unknown.append(key)
                continue
            for name, tensor in _our_tensors(*match, value):
                if name in found and not torch.equal(found[name], tensor):
                    raise WeightsError(f'{key} differs from its other copy, both are {name}')
                found[name] = tensor
        self._refuse(unknown)
        return found

    def to_theirs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate diffusers' names into the file's.

        Raises:
            WeightsError: A key that the table does not know, or a part of a joined tensor that is
                missing.
        """
        found: dict[str, Tensor] = {}
        joined: dict[str, tuple[Row, dict[str, Tensor]]] = {}
        unknown = []
        for key, value in tensors.items():
            match = self._ours.find(key)
            if match is None:
                unknown.append(key)
                continue
            row, names = match
            if row.parts:
                name = row.theirs.format(**names)
                joined.setdefault(name, (row, {}))[1][names['part']] = value
                continue
            for copy in row.copies or ('',):
                name = row.theirs.format(**{**names, 'copy': copy})
                found[name] = row.change.to_theirs(value) if row.change else value
        self._refuse(unknown)
        return found | {name: _join(name, *part) for name, part in joined.items()}

    def knows(self, key: str) -> bool:
        """Whether a row of the table has ``key`` on the file's side."""
        return self._theirs.find(key) is not None

    @cached_property
    def _theirs(self) -> _Index:
        return _Index([(row.theirs, row) for row in self.rows], self.placeholders)

    @cached_property
    def _ours(self) -> _Index:
        return _Index([(r.ours, r) for r in self.rows if not r.only_read], self.placeholders)

    def _refuse(self, unknown: list[str]) -> None:
        if unknown:
            shown = ', '.join(unknown[:_SHOWN])
            raise WeightsError(f'{len(unknown)} tensors are no part of {self.name}: {shown}')


class _Index:
    """Finds the row of a key: at once where the template is the key itself, else in order."""

    def __init__(self, rows: list[tuple[str, Row]], own: Mapping[str, str]) -> None:
        placeholders = {**PLACEHOLDERS, **own}
        self.exact = {text: row for text, row in reversed(rows) if not _PIECE.search(text)}
        self.patterns = [
            (_pattern(text, {**placeholders, **_part(row)}), row)
            for text, row in rows
            if _PIECE.search(text)
        ]

    def find(self, key: str) -> tuple[Row, dict[str, str]] | None:
        row = self.exact.get(key)
        if row is not None:
            return row, {}
        for pattern, row in self.patterns:
            if match := pattern.fullmatch(key):
                return row, match.groupdict()
        return None


def _our_tensors(row: Row, names: dict[str, str], value: Tensor) -> Iterator[tuple[str, Tensor]]:
    value = row.change.to_ours(value) if row.change else value
    if not row.parts:
        yield row.ours.format(**names), value
        return
    for part, tensor in zip(row.parts, value.chunk(len(row.parts)), strict=True):
        yield row.ours.format(**names, part=part), tensor


def _join(name: str, row: Row, found: Mapping[str, Tensor]) -> Tensor:
    absent = [part for part in row.parts if part not in found]
    if absent:
        raise WeightsError(f'{name} needs {", ".join(row.parts)}; {", ".join(absent)} is missing')
    value = torch.cat([found[part] for part in row.parts])
    return row.change.to_theirs(value) if row.change else value


def _part(row: Row) -> dict[str, str]:
    return {'part': '|'.join(map(re.escape, row.parts))} if row.parts else {}


def _pattern(template: str, placeholders: Mapping[str, str]) -> re.Pattern[str]:
    """A placeholder that stands twice must have the same value in both places."""
    pieces, seen = [], set()
    for index, piece in enumerate(_PIECE.split(template)):
        if index % 2 == 0:
            pieces.append(re.escape(piece))
        elif piece in seen:
            pieces.append(f'(?P={piece})')
        else:
            pieces.append(f'(?P<{piece}>{placeholders[piece]})')
            seen.add(piece)
    return re.compile(''.join(pieces))

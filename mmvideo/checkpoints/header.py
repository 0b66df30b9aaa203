"""The header of a safetensors file, checked before the library that reads it sees the file.

Format (safetensors README, "Format"): 8 bytes with the length of the header, little endian; the
header, a JSON object of name to ``dtype``, ``shape``, ``data_offsets``; then the values, without
holes, to the end of the file. A header is the work of a stranger: everything in it that could
lead a reader outside the file, or make it allocate what is not there, is checked here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mmvideo.errors import WeightsError, nearest

# 3,000 tensors, as the largest models here have, need 0.4 MB.
MAX_HEADER = 25 * 10**6
METADATA = '__metadata__'
# Bits a value.
DTYPES = {
    'BOOL': 8, 'U8': 8, 'I8': 8, 'F8_E4M3': 8, 'F8_E5M2': 8, 'F8_E8M0': 8,
    'I16': 16, 'U16': 16, 'F16': 16, 'BF16': 16, 'I32': 32, 'U32': 32, 'F32': 32,
    'I64': 64, 'U64': 64, 'F64': 64, 'C64': 64,
}  # fmt: skip
_KEYS = {'dtype', 'shape', 'data_offsets'}
_MAX_DIMENSIONS = 16


def read_header(path: str | Path) -> dict[str, Any]:
    """The checked header of a safetensors file; reads nothing behind it.

    Returns:
        Name to ``{'dtype': ..., 'shape': [...], 'data_offsets': [begin, end]}``, and perhaps
        ``__metadata__`` to a mapping of texts.

    Raises:
        WeightsError: The file is cut off or too long, or the header is no such object: what was
            found and what was expected.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, 'rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        _check_length(path, size, length)
        header = _parsed(path, file.read(length))
    _check_metadata(path, header.get(METADATA))
    spans = [_span(path, name, header[name]) for name in header if name != METADATA]
    _check_spans(path, spans, size - 8 - length, 8 + length)
    return header


def count_values(header: dict[str, Any]) -> int:
    """How many values the tensors of a checked header have together."""
    return sum(math.prod(entry['shape']) for name, entry in header.items() if name != METADATA)


def _check_length(path: Path, size: int, length: int) -> None:
    if length > MAX_HEADER:
        raise WeightsError(
            f'{path} is no safetensors file, or a damaged one: its first 8 bytes claim a header of '
            f'{length} bytes, expected at most {MAX_HEADER}'
        )
    if size < 8 + length:
        raise WeightsError(
            f'{path} is cut off inside its header: {size} bytes, expected at least {8 + length}; '
            'fetch it again'
        )


def _parsed(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode('utf-8'), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise WeightsError(
            f'{path} has a damaged safetensors header: it is nested too deeply'
        ) from None
    except ValueError as error:  # no JSON, no UTF-8, repeated names, numbers of 5,000 digits
        raise WeightsError(f'{path} has a damaged safetensors header: {_brief(error)}') from None
    if not isinstance(header, dict):
        raise _fault(path, 'its header', f'a JSON {type(header).__name__}', 'a JSON object')
    return header


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f'the name {twice[:80]!r} stands in it twice')
    return content


def _check_metadata(path: Path, metadata: Any) -> None:
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if metadata is not None and not texts:
        raise _fault(path, METADATA, _shown(metadata), 'texts by name')


def _span(path: Path, name: str, entry: Any) -> tuple[int, int, str]:
    """Begin, end and name of a tensor whose entry is consistent in itself."""
    if not isinstance(entry, dict) or set(entry) != _KEYS:
        raise _fault(path, repr(name[:80]), _shown(entry), 'dtype, shape and data_offsets')
    dtype, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
    if not isinstance(dtype, str) or dtype not in DTYPES:
        known = f'one of {", ".join(DTYPES)}.{nearest(_shown(dtype), DTYPES)}'
        raise _fault(path, f'the dtype of {name[:80]!r}', _shown(dtype), known)
    if not _counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _fault(path, f'the shape of {name[:80]!r}', _shown(shape), 'a list of sizes')
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _fault(
            path, f'the data_offsets of {name[:80]!r}', _shown(offsets), '[begin, end] in bytes'
        )
    wanted = math.prod(shape) * DTYPES[dtype] // 8
    if offsets[1] - offsets[0] != wanted:
        raise _fault(
            path,
            f'{name[:80]!r}',
            f'{offsets[1] - offsets[0]} bytes',
            f'{wanted} bytes for {dtype} {_shown(shape)}',
        )
    return offsets[0], offsets[1], name


def _check_spans(path: Path, spans: list[tuple[int, int, str]], found: int, start: int) -> None:
    """The tensors lie one behind the other, from the header's end to the file's end."""
    expected = max((end for _, end, _ in spans), default=0)
    if found < expected:
        raise WeightsError(
            f'{path} is cut off: {start + found} of {start + expected} bytes; fetch it again'
        )
    end = 0
    for begin, stop, name in sorted(spans):
        if begin != end:
            what = 'overlaps the tensor before it' if begin < end else 'leaves a hole before it'
            raise WeightsError(
                f'{path} is a damaged safetensors file: {name[:80]!r} {what} (begins at {begin}, '
                f'expected {end})'
            )
        end = stop
    if found > end:
        raise WeightsError(
            f'{path} is a damaged safetensors file: {found - end} bytes follow the last tensor'
        )


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _shown(value: Any) -> str:
    return _brief(json.dumps(value)) if not isinstance(value, str) else repr(value[:80])


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + '...'


def _fault(path: Path, what: str, found: str, expected: str) -> WeightsError:
    return WeightsError(
        f'{path} is a damaged safetensors file: {what} is {found}, expected {expected}'
    )

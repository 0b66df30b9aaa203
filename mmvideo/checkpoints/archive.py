"""The zip archive of ``torch.save``, checked before torch opens it.

Such an archive has one folder with ``data.pkl`` and the values of each tensor as a file, none of
them compressed. Nothing here is unpacked: what would grow on unpacking, holds programs, or
contradicts the size of the file is refused from its table of contents.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmvideo.errors import WeightsError

# 3,000 tensors need 0.3 MB.
MAX_PICKLE = 64 * 10**6
MAX_ENTRIES = 10**5
_PICKLE = '/data.pkl'


def check_archive(path: Path) -> frozenset[int]:
    """The sizes in bytes of the values in an archive of ``torch.save``.

    Raises:
        WeightsError: The file is no such archive, damaged, or holds a program.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, ValueError, ArithmeticError,
            NotImplementedError, struct.error, LookupError) as error:  # fmt: skip
        raise WeightsError(
            f'{path} ({path.stat().st_size} bytes) is cut off or damaged: it begins as a zip '
            f'archive and has no table of contents at its end; fetch it again. ({error})'
        ) from None
    if len(entries) > MAX_ENTRIES:
        raise _fault(path, f'{len(entries)} files', f'at most {MAX_ENTRIES}')
    _check_names(path, [entry.filename for entry in entries])
    _check_sizes(path, entries)
    return frozenset(entry.file_size for entry in entries if '/data/' in entry.filename)


def check_storages(path: Path, content: Any, sizes: frozenset[int]) -> None:
    """Each tensor's values are one of the files of the archive, whole.

    A mapped archive is one piece of memory: a tensor whose storage claims more than its file has
    would go on in the next file, and read its bytes as values.
    """
    for tensor in _tensors(content):
        found = tensor.untyped_storage().nbytes()
        if found and found not in sizes:
            known = ', '.join(map(str, sorted(sizes)[:8]))
            raise _fault(path, f'a tensor of {found} bytes', f'a whole file, of {known} bytes')


def _tensors(content: Any) -> Iterator[Any]:
    """The dense tensors in nested containers, which may hold themselves."""
    left, seen = [content], set()
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, (list, tuple, set)):
            left += value
        elif hasattr(value, 'untyped_storage') and str(value.layout) == 'torch.strided':
            yield value


def _check_names(path: Path, names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise _fault(path, 'two files of one name', 'a name for each')
    pickles = [name for name in names if name.endswith(_PICKLE) and name.count('/') == 1]
    root = pickles[0].removesuffix(_PICKLE) if pickles else ''
    if any(name == f'{root}/constants.pkl' or name.startswith(f'{root}/code/') for name in names):
        raise WeightsError(
            f'{path} is a TorchScript archive, a program with its weights, expected weights alone; '
            'save its state_dict() with torch.save or safetensors'
        )
    if len(pickles) != 1:
        shown = ', '.join(name[:60] for name in names[:4]) or 'nothing'
        raise _fault(path, f'a zip archive with {shown}', 'one folder with data.pkl')
    outside = [name for name in names if not name.startswith(f'{root}/') or '..' in name.split('/')]
    if outside:
        raise _fault(path, f'the file {outside[0][:60]!r}', f'all in the folder {root!r}')


def _check_sizes(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    size = path.stat().st_size
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise _fault(
                path,
                f'{entry.filename[:60]!r} compressed ({entry.compress_size} bytes that become '
                f'{entry.file_size})',
                'no compression, as torch.save writes it',
            )
        if entry.header_offset + entry.file_size > size:
            raise _fault(
                path, f'{entry.filename[:60]!r} beyond the end of the file', f'{size} bytes in all'
            )
        if entry.filename.endswith(_PICKLE) and entry.file_size > MAX_PICKLE:
            raise _fault(path, f'a data.pkl of {entry.file_size} bytes', f'at most {MAX_PICKLE}')
    total = sum(entry.file_size for entry in entries)
    if total > size:
        raise _fault(path, f'files of {total} bytes together', f'at most {size}, its own size')


def _fault(path: Path, found: str, expected: str) -> WeightsError:
    return WeightsError(
        f'{path} is no weight file of torch.save: it has {found}, expected {expected}'
    )

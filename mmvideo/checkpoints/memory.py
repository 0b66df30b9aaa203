"""Memory of mapped weight files, given back as soon as its tensors are copied.

A tensor of a mapped file takes resident memory once somebody reads it, and keeps it until the
mapping ends; a model would take its size twice while it is loaded. The pages can be dropped at any
time, because the file still has them. That is so on Linux, which also tells what is mapped; where
it cannot be told, nothing is dropped and the system reclaims the pages when it needs them.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import sys
from pathlib import Path

from torch import Tensor

_MAPS = Path('/proc/self/smaps')


class MappedFiles:
    """The files that this process has mapped for itself and not written to, at this time."""

    def __init__(self) -> None:
        ranges = _clean_mappings() if sys.platform == 'linux' and _MAPS.exists() else []
        self._starts = [start for start, _ in ranges]
        self._ends = [end for _, end in ranges]
        self._libc = ctypes.CDLL(None) if ranges else None

    def holds(self, tensor: Tensor) -> bool:
        """Whether all of a CPU tensor lies in a mapped file."""
        if tensor.device.type != 'cpu' or tensor.nbytes == 0 or not tensor.is_contiguous():
            return False
        start = tensor.data_ptr()
        at = bisect.bisect_right(self._starts, start) - 1
        return at >= 0 and start + tensor.nbytes <= self._ends[at]

    def drop(self, tensor: Tensor) -> None:
        """Drop the whole pages of a mapped tensor; reading it again reads the file again."""
        if self._libc is None or not self.holds(tensor):
            return
        page = mmap.PAGESIZE
        first = -(-tensor.data_ptr() // page) * page
        length = (tensor.data_ptr() + tensor.nbytes) // page * page - first
        if length > 0:
            self._libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _clean_mappings() -> list[tuple[int, int]]:
    """(start, end) of each private file mapping of which no page was written to, in order."""
    found, span = [], None
    for line in _MAPS.read_text(encoding='utf-8', errors='replace').splitlines():
        name, *values = line.split()
        if not name.endswith(':'):  # the head of a mapping: its span, flags, offset, device, inode
            flags, _, _, inode = values[:4]
            span = name if flags.endswith('p') and inode != '0' else None
        elif name == 'Anonymous:' and span is not None and values[0] == '0':
            start, end = (int(value, 16) for value in span.split('-'))
            found.append((start, end))
    return found

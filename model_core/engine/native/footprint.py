# SPDX-License-Identifier: Apache-2.0
"""Gives memory back that nothing will read again soon. Changes no value of any tensor."""

from __future__ import annotations

import bisect
import ctypes
import mmap
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

_MADV_DONTNEED = 4  # of Linux, which alone has /proc/self/pagemap
_MAPPING = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)", re.MULTILINE)
# Of an entry of the page map: here, swapped out, and whether a file stands behind it.
_HERE, _SWAPPED, _OF_FILE = np.uint64(1 << 63), np.uint64(1 << 62), np.uint64(1 << 61)


def give_back_freed() -> None:
    """Returns freed memory to the system, where the C library would keep it for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def release_file_pages(tensors: Iterable[Tensor]) -> int:
    """Drops this process's pages of mapped files that hold the given tensors.

    They are read from the file again when somebody touches them. Mappings that hold pages of this process's
    own (something was written into them) and memory that is no file are left alone, so no value changes.

    Args:
        tensors: weights that are not read for now.

    Returns:
        Bytes of the mappings that were dropped; 0 where the system does not tell what is mapped.
    """
    places = sorted({tensor.untyped_storage().data_ptr() for tensor in tensors})
    libc, dropped = ctypes.CDLL(None, use_errno=True), 0
    for begin, end in _file_mappings(places):
        if _has_own_pages(begin, end):
            continue
        size = end - begin
        if libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _MADV_DONTNEED) == 0:
            dropped += size
    return dropped


def _file_mappings(places: list[int]) -> Iterator[tuple[int, int]]:
    """Mappings of files in which places lie; one may begin before a tensor, by the header of its file.

    Streams wait for whoever holds the interpreter, so the map is read without a loop over its lines, and
    without the sums over all pages of the process that a more talkative one would bring.
    """
    try:
        lines = Path("/proc/self/maps").read_bytes()
    except OSError:
        return
    for low, high, inode in _MAPPING.findall(lines):
        begin, end = int(low, 16), int(high, 16)
        if inode != b"0" and bisect.bisect_left(places, begin) < bisect.bisect_left(places, end):
            yield begin, end


def _has_own_pages(begin: int, end: int) -> bool:
    """Whether a mapping of a file holds pages that are this process's own; also where nobody can tell."""
    first, n_pages = begin // mmap.PAGESIZE, (end - begin) // mmap.PAGESIZE
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
            pages.seek(8 * first)
            entries = np.frombuffer(pages.read(8 * n_pages), np.uint64)
    except OSError:
        return True
    own = ((entries & _HERE) != 0) & ((entries & _OF_FILE) == 0)
    return len(entries) < n_pages or bool((own | ((entries & _SWAPPED) != 0)).any())

# SPDX-License-Identifier: Apache-2.0
"""Gives memory back that nothing will read again soon. Changes no value of any tensor."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

_MADV_DONTNEED = 4  # of Linux, which alone has /proc/self/smaps


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mapping:
    """One line of a process's map."""

    begin: int
    end: int
    inode: int
    private_bytes: int


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
    for mapping in _mappings():
        ours = any(mapping.begin <= place < mapping.end for place in places)
        if not ours or mapping.inode == 0 or mapping.private_bytes:
            continue
        size = mapping.end - mapping.begin
        if libc.madvise(ctypes.c_void_p(mapping.begin), ctypes.c_size_t(size), _MADV_DONTNEED) == 0:
            dropped += size
    return dropped


def _mappings() -> Iterator[_Mapping]:
    """The process's mappings; a mapping may begin before a tensor, by the header of its file."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return
    begin = end = inode = 0
    for line in lines:
        head, _, rest = line.partition(" ")
        if "-" in head and not head.endswith(":"):
            low, high = head.split("-")
            begin, end, inode = int(low, 16), int(high, 16), int(rest.split()[3])
        elif head == "Anonymous:":
            kib = int(rest.split()[0])
            yield _Mapping(begin=begin, end=end, inode=inode, private_bytes=kib * 1024)

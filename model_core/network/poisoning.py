# SPDX-License-Identifier: Apache-2.0
"""Fills weights with NaN so that whoever still multiplied them would show it.

Writing over mapped weights would first copy every page of them, which for an expert of some ten million
weights holds up all open streams for tenths of a second. Where tensors lie in a private mapping of a file,
whole pages of them are mapped anew, onto one small piece of memory that holds nothing but NaN; the file and
other processes see nothing of it. What is left, and weights in plain memory, is written over. This module
does not know what an expert is.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

# All bits set is NaN in every floating format.
_NAN_BYTE = b"\xff"
_PIECE_BYTES = 2 << 20
_MAP_FIXED = 0x10  # of Linux, which alone has /proc/self/maps


@torch.no_grad()
def fill_with_nan(tensors: Iterable[Tensor]) -> None:
    """Fills floating tensors with NaN, and integers with their lowest number.

    Nobody may compute with them meanwhile.

    Args:
        tensors: views of memory that nothing else than poisoned tensors shares.
    """
    ranges = _file_ranges()
    for tensor in tensors:
        if not tensor.is_floating_point():
            # Integers know no NaN; the scales that multiply them do.
            tensor.fill_(torch.iinfo(tensor.dtype).min)
            continue
        begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        low = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        high = end // mmap.PAGESIZE * mmap.PAGESIZE
        mapped = any(first <= low and high <= last for first, last in ranges)
        if not (mapped and low < high and tensor.is_contiguous() and _map_nan(low, high)):
            tensor.fill_(float("nan"))
            continue
        flat = tensor.view(-1)
        size = tensor.element_size()
        flat[: -(-(low - begin) // size)].fill_(float("nan"))
        flat[(high - begin) // size :].fill_(float("nan"))


def _map_nan(low: int, high: int) -> bool:
    """Maps pages onto NaN; False where the system refused, then some may be NaN already."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    for begin in range(low, high, _PIECE_BYTES):
        size = min(_PIECE_BYTES, high - begin)
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED
        if libc.mmap(begin, size, protection, flags, _nan_file(), 0) != begin:
            return False
    return True


@cache
def _nan_file() -> int:
    """An open file in memory that holds nothing but NaN; kept as long as the process lives."""
    handle = os.memfd_create("nan", os.MFD_CLOEXEC)
    with os.fdopen(handle, "wb", closefd=False) as stream:
        stream.write(_NAN_BYTE * _PIECE_BYTES)
    return handle


def _file_ranges() -> list[tuple[int, int]]:
    """Where this process has mapped files privately; nothing where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        place, rights, _, _, inode = line.split()[:5]
        if rights.endswith("p") and inode != "0":
            first, last = place.split("-")
            found.append((int(first, 16), int(last, 16)))
    return found

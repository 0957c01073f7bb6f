# SPDX-License-Identifier: Apache-2.0
"""Finds NaN, infinity and scales that scale nothing in a safetensors file, without a tensor library.

A bundle with such a number would be refused by every host that loads it, after its owner was told that it
was admitted. Asking here keeps it out of the register.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from model_core.errors import BundleCorrupt
from model_core.packing.safetensors_header import SafetensorsHeader, TensorEntry

_PIECE_BYTES = 1 << 24
_LENGTH_PREFIX_BYTES = 8

# The bits of the exponent: a number is infinite or NaN exactly when all of them are set.
_EXPONENT: dict[str, tuple[np.dtype[Any], int]] = {
    "F32": (np.dtype("<u4"), 0x7F800000),
    "F16": (np.dtype("<u2"), 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80),
}


def rotten_tensors(stream: BinaryIO, header: SafetensorsHeader) -> list[str]:
    """Names of tensors that hold NaN or infinity, sorted.

    Args:
        stream: the file, seekable; its position afterwards is undefined.
        header: its checked header.
    """
    data_begin = _LENGTH_PREFIX_BYTES + header.header_bytes
    return sorted(
        name
        for name, entry in header.tensors.items()
        if entry.dtype in _EXPONENT and _rotten(stream, data_begin, entry)
    )


def tensors_not_above_zero(stream: BinaryIO, header: SafetensorsHeader, names: Iterable[str]) -> list[str]:
    """Names of those of the given tensors that hold zero or a negative number, sorted.

    Args:
        stream: the file, seekable; its position afterwards is undefined.
        header: its checked header.
        names: fp32 tensors without NaN (``rotten_tensors`` comes first).
    """
    data_begin = _LENGTH_PREFIX_BYTES + header.header_bytes
    kind = np.dtype("<f4")
    return sorted(
        name
        for name in names
        if any(
            bool(np.any(np.frombuffer(piece, kind) <= 0))
            for piece in _pieces(stream, data_begin, header.tensors[name])
        )
    )


def _rotten(stream: BinaryIO, data_begin: int, entry: TensorEntry) -> bool:
    kind, exponent = _EXPONENT[entry.dtype]
    return any(
        bool(np.any((np.frombuffer(piece, kind) & exponent) == exponent))
        for piece in _pieces(stream, data_begin, entry)
    )


def _pieces(stream: BinaryIO, data_begin: int, entry: TensorEntry) -> Iterator[bytes]:
    """A tensor's bytes, a bounded number at a time.

    Raises:
        BundleCorrupt: the file ends before the tensor does.
    """
    stream.seek(data_begin + entry.begin)
    left = entry.end - entry.begin
    while left:
        piece = stream.read(min(left, _PIECE_BYTES))
        if not piece:
            raise BundleCorrupt("The weights file shrank while it was read; fetch the bundle again.")
        left -= len(piece)
        yield piece

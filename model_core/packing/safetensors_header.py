# SPDX-License-Identifier: Apache-2.0
"""Reads the header of a safetensors file and believes nothing in it.

A hostile file must be refused before any tensor library maps it, so the format is checked here from its
definition: eight bytes of little-endian header length, a JSON object, then the tensors' bytes without
holes or overlaps up to the last byte of the file. Pickles, zip archives and truncated files fail at the
first of these. Knows nothing of values; ``finite`` looks at those.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from model_core.errors import BundleNotSafetensors

DTYPE_SIZE_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1}

MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
MAX_DIMENSION = 1 << 40


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """Where one tensor lies.

    Attributes:
        dtype: one of ``DTYPE_SIZE_BYTES``.
        shape: elements per dimension; ``()`` is a scalar.
        begin: first byte, counted from the end of the header.
        end: one past the last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SafetensorsHeader:
    """A header that was checked against the size of its file.

    Attributes:
        tensors: name → place.
        header_bytes: length of the JSON.
    """

    tensors: dict[str, TensorEntry]
    header_bytes: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape."""
        return {name: entry.shape for name, entry in self.tensors.items()}


def read_header(stream: BinaryIO, size_bytes: int) -> SafetensorsHeader:
    """Reads and checks the header of an open file.

    Args:
        stream: the file, opened for binary reading; it is read from its start.
        size_bytes: the size of the whole file.

    Raises:
        BundleNotSafetensors: the file is not a well-formed safetensors file of allowed dtypes.
    """
    stream.seek(0)
    prefix = stream.read(8)
    if len(prefix) < 8:
        _refuse("it is shorter than its length field")
    (header_bytes,) = struct.unpack("<Q", prefix)
    if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, size_bytes - 8):
        _refuse("its header length is out of bounds")
    text = stream.read(header_bytes)
    if len(text) != header_bytes or not text.startswith(b"{"):
        _refuse("its header is not a JSON object")
    fields = _parse(text)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse("its metadata is not a map of strings")
    if len(fields) > MAX_TENSORS:
        _refuse(f"it holds more than {MAX_TENSORS} tensors")
    tensors = {name: _entry(value) for name, value in fields.items()}
    _check_tiling(tensors, size_bytes - 8 - header_bytes)
    return SafetensorsHeader(tensors=tensors, header_bytes=header_bytes)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        _refuse("its header is not valid JSON")
    if not isinstance(fields, dict):
        _refuse("its header is not a JSON object")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; two entries of one name would let two readers see two files."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        _refuse("its header names something twice")
    return fields


def _entry(value: object) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse("a tensor's entry has other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_SIZE_BYTES:
        _refuse("a tensor's dtype is not F32, BF16, F16 or I8")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS or any(size > MAX_DIMENSION for size in shape):
        _refuse("a tensor's shape is not a short list of sizes")
    if not _naturals(offsets) or len(offsets) != 2:
        _refuse("a tensor's offsets are not two positions")
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPE_SIZE_BYTES[dtype]:
        _refuse("a tensor's offsets do not fit its shape and dtype")
    return TensorEntry(dtype=dtype, shape=tuple(shape), begin=begin, end=end)


def _naturals(value: object) -> bool:
    """Whether the value is a list of integers from 0 on (true and false are no numbers here)."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_tiling(tensors: dict[str, TensorEntry], data_bytes: int) -> None:
    """Tensors must lie one after another from the first byte to the last: no hole, no overlap."""
    position = 0
    for entry in sorted(tensors.values(), key=lambda one: (one.begin, one.end)):
        if entry.begin != position:
            _refuse("its tensors overlap or leave holes")
        position = entry.end
    if position != data_bytes:
        _refuse("it is truncated or holds bytes that belong to no tensor")


def _refuse(why: str) -> NoReturn:
    raise BundleNotSafetensors(f"The weights file is not an acceptable safetensors file: {why}.", why=why)

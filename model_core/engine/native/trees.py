# SPDX-License-Identifier: Apache-2.0
"""Packed weights as a description and a row of tensors, and back: what a derived file consists of.

A description is JSON: dataclasses by name, tuples as lists, tensors as places in the file. Only the classes
of packed weights can be named, and every place is checked, so a file can describe nothing else. Knows no
files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import mmap
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from model_core.engine.native.panels import ALIGN_BYTES, Packed, ShortExponents
from model_core.engine.native.weights import (
    PackedBase,
    PackedBaseLayer,
    PackedExpert,
    PackedExpertLayer,
    PackedFactors,
    PackedFfn,
)

_CLASSES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Packed,
        PackedBase,
        PackedBaseLayer,
        PackedExpert,
        PackedExpertLayer,
        PackedFactors,
        PackedFfn,
        ShortExponents,
    )
}
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_LARGE_PAGE_BYTES = 2 << 20
_Tree = TypeVar("_Tree", PackedBase, PackedExpert)


class NotATree(ValueError):
    """A description that describes no packed weights."""


class Layout:
    """Places of tensors one behind the other, each at a multiple of 64 bytes.

    Attributes:
        tensors: (first byte, tensor) in order.
        size_bytes: of all together.
    """

    def __init__(self) -> None:
        self.tensors: list[tuple[int, Tensor]] = []
        self.size_bytes = 0

    def place(self, tensor: Tensor) -> int:
        """Gives a tensor its place; returns its first byte."""
        begin = self.size_bytes
        self.tensors.append((begin, tensor))
        self.size_bytes = -(-(begin + tensor.nbytes) // ALIGN_BYTES) * ALIGN_BYTES
        return begin


def describe(value: Any, layout: Layout) -> Any:
    """The description of packed weights.

    Args:
        value: packed weights, or a part of them.
        layout: gets their tensors.
    """
    if isinstance(value, Tensor):
        place = layout.place(value)
        return {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "begin": place}
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: describe(getattr(value, field.name), layout) for field in dataclasses.fields(value)
        }
        return {"is": type(value).__name__, "fields": fields}
    if isinstance(value, tuple):
        return [describe(one, layout) for one in value]
    return value


def restore(description: Any, memory: Tensor) -> Any:
    """Packed weights whose tensors are views of memory.

    Args:
        description: what ``describe`` made.
        memory: the bytes that the layout placed, flat uint8.

    Raises:
        NotATree: it describes something else, or a place outside of the memory.
    """
    if isinstance(description, list):
        return tuple(restore(one, memory) for one in description)
    if not isinstance(description, dict):
        return description
    if "begin" in description:
        return _guarded(_tensor, description, memory)
    return _guarded(_object, description, memory)


@torch.no_grad()
def in_large_pages(value: _Tree) -> _Tree:
    """The same packed weights in one piece of memory, of large pages where the system has them.

    A step reads all of it once, and would wait for the tables of small pages at every turn. Until this
    returns, both copies take memory.

    Args:
        value: what was packed; given back itself where it is smaller than a large page, or where the system
            has no room for another copy.
    """
    layout = Layout()
    description = describe(value, layout)
    if layout.size_bytes < _LARGE_PAGE_BYTES:
        return value
    try:
        memory = _large_pages(layout.size_bytes)
    except OSError:
        return value
    for begin, tensor in layout.tensors:
        target = memory[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        target.copy_(tensor)
    made: _Tree = restore(description, memory)
    return made


def _large_pages(size_bytes: int) -> Tensor:
    """Fresh memory that starts at a multiple of a large page, flat uint8; it ends with its last view.

    What is left behind the last whole large page stays in small ones, so weights take no more than they are.
    """
    area = mmap.mmap(-1, size_bytes + _LARGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    raw = torch.frombuffer(area, dtype=torch.uint8)
    skip = -raw.data_ptr() % _LARGE_PAGE_BYTES
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            area.madvise(mmap.MADV_HUGEPAGE, skip, size_bytes // _LARGE_PAGE_BYTES * _LARGE_PAGE_BYTES)
    return raw[skip : skip + size_bytes]


def _guarded(
    make: Callable[[dict[str, Any], Tensor], Any], description: dict[str, Any], memory: Tensor
) -> Any:
    try:
        return make(description, memory)
    except (KeyError, TypeError, AttributeError) as error:
        raise NotATree(f"not a description of packed weights: {error}") from error


def _tensor(description: dict[str, Any], memory: Tensor) -> Tensor:
    dtype, shape, begin = _DTYPES[description["dtype"]], description["shape"], description["begin"]
    if not all(isinstance(size, int) and size >= 0 for size in (*shape, begin)) or begin % ALIGN_BYTES:
        raise NotATree("a tensor's place or shape is impossible")
    end = begin + math.prod(shape) * dtype.itemsize
    if end > memory.shape[0]:
        raise NotATree("a tensor's place is outside of the file")
    return memory[begin:end].view(dtype).view(shape)


def _object(description: dict[str, Any], memory: Tensor) -> Any:
    kind = _CLASSES[description["is"]]
    fields = {name: restore(one, memory) for name, one in description["fields"].items()}
    return kind(**fields)

# SPDX-License-Identifier: Apache-2.0
"""Writes safetensors files tensor by tensor: the header first, then what each part gives when asked.

Only one tensor is in memory at a time. Equal parts give equal bytes: tensors stand by width of their numbers
and then by name, whatever order they are passed in. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from model_core.interop.reader import DTYPE_NAMES, INDEX_FILE, SINGLE_FILE
from model_core.packing.files import sync_folder, write_new_file

_ALIGN_BYTES = 8
_PIECE_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A tensor to write.

    Attributes:
        name: in the file.
        dtype: of the numbers.
        shape: elements per dimension.
        load: gives the tensor, of this dtype and shape, when its turn has come.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], Tensor]

    @property
    def size_bytes(self) -> int:
        """Its length in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: Path, parts: Sequence[Part], *, on_bytes: Callable[[int], None] = lambda _count: None
) -> str:
    """Writes one file, through to the disk.

    Args:
        path: must not exist.
        parts: its tensors.
        on_bytes: told the length of every piece written.

    Returns:
        The digest of the file.
    """
    ordered = _ordered(parts)
    digest = hashlib.sha256()
    with path.open("xb") as stream:
        _write(stream, digest, _header(ordered))
        for part in ordered:
            for piece in _pieces(part):
                _write(stream, digest, piece)
                on_bytes(len(piece))
        stream.flush()
        os.fsync(stream.fileno())
    return "sha256:" + digest.hexdigest()


def write_shards(
    folder: Path,
    parts: Sequence[Part],
    *,
    shard_bytes: int,
    on_bytes: Callable[[int], None] = lambda _count: None,
) -> tuple[str, ...]:
    """Writes ``model.safetensors``, or shards of about a size with their index.

    Args:
        folder: where to; none of the files may exist.
        parts: all tensors, in the order in which they shall fill shards.
        shard_bytes: where a shard ends; a tensor is never cut.
        on_bytes: told the length of every piece written.

    Returns:
        Names of the files written.
    """
    shards: list[list[Part]] = [[]]
    filled = 0
    for part in parts:
        if shards[-1] and filled + part.size_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(part)
        filled += part.size_bytes
    if len(shards) == 1:
        write_safetensors(folder / SINGLE_FILE, parts, on_bytes=on_bytes)
        sync_folder(folder)
        return (SINGLE_FILE,)
    names: list[str] = []
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, shard, on_bytes=on_bytes)
        names.append(name)
        weight_map |= {part.name: name for part in shard}
    index = {"metadata": {"total_size": sum(part.size_bytes for part in parts)}, "weight_map": weight_map}
    write_new_file(folder / INDEX_FILE, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
    sync_folder(folder)
    return (*names, INDEX_FILE)


def _ordered(parts: Sequence[Part]) -> list[Part]:
    # Wider numbers first: every tensor then begins at a multiple of its own width.
    return sorted(parts, key=lambda part: (-part.dtype.itemsize, part.name))


def _header(ordered: Sequence[Part]) -> bytes:
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for part in ordered:
        end = position + part.size_bytes
        fields[part.name] = {
            "dtype": DTYPE_NAMES[part.dtype],
            "shape": list(part.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN_BYTES)
    return struct.pack("<Q", len(text)) + text


def _pieces(part: Part) -> list[memoryview]:
    tensor = part.load().detach()
    if tensor.dtype != part.dtype or tuple(tensor.shape) != part.shape:
        raise AssertionError(f"{part.name} was announced as another tensor")  # a mistake of ours
    if not tensor.numel():
        return []
    flat = tensor.to(device="cpu").contiguous().view(-1).view(torch.uint8).numpy()
    return [flat[begin : begin + _PIECE_BYTES].data for begin in range(0, len(flat), _PIECE_BYTES)]


def _write(stream: BinaryIO, digest: hashlib._Hash, data: bytes | memoryview) -> None:
    stream.write(data)
    digest.update(data)

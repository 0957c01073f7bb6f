# SPDX-License-Identifier: Apache-2.0
"""Reads model folders: one safetensors file or shards with an index, one mapped tensor at a time.

Nothing of a file is believed before its header was checked from the definition of the format, and no tensor
is mapped longer than it is held, so that the memory of a pass over a checkpoint is that of its largest
tensor. Pickles are refused unread. Knows nothing of models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model_core.errors import BundleRefused, ModelFolderRefused
from model_core.interop.folders import exists, plain_path, read_side_file
from model_core.packing.files import open_plain_file
from model_core.packing.safetensors_header import read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_MAX_INDEX_BYTES = 64 << 20
_MAX_SHARD_BYTES = 1 << 40
_LENGTH_PREFIX_BYTES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """One tensor of a checkpoint.

    Attributes:
        file: that holds it.
        dtype: ``F32``, ``BF16`` or ``F16``.
        shape: elements per dimension.
        begin: first byte, counted from the start of the file.
        size_bytes: its length.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    size_bytes: int


class Checkpoint:
    """The tensors of a folder, by name.

    Args:
        held: name → place.
    """

    def __init__(self, held: Mapping[str, Held]) -> None:
        self.held = dict(held)

    def tensor(self, name: str, *, index: int | None = None, rows: tuple[int, int] | None = None) -> Tensor:
        """Maps a tensor, or a part of one; the mapping ends with the last reference to it.

        Args:
            name: of the tensor.
            index: which entry of the first dimension; None for all.
            rows: first and last (exclusive) row of what is left; None for all.
        """
        held = self.held[name]
        item_bytes = DTYPES[held.dtype].itemsize
        shape, begin = held.shape, held.begin
        if index is not None:
            shape = shape[1:]
            begin += index * math.prod(shape) * item_bytes
        if rows is not None:
            begin += rows[0] * math.prod(shape[1:]) * item_bytes
            shape = (rows[1] - rows[0], *shape[1:])
        if 0 in shape:
            return torch.empty(shape, dtype=DTYPES[held.dtype])
        size_bytes = math.prod(shape) * item_bytes
        # Mapped privately: nothing can be written back to the file.
        raw: np.ndarray = np.memmap(held.file, dtype=np.uint8, mode="c", offset=begin, shape=(size_bytes,))
        if begin % item_bytes:  # savers need not align; kernels may want it
            raw = np.array(raw)
        return torch.from_numpy(raw).view(DTYPES[held.dtype]).view(shape)

    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(held.size_bytes for held in self.held.values())


def open_checkpoint(folder: Path) -> Checkpoint:
    """Opens the weights of a model folder.

    Raises:
        ModelFolderRefused: no safetensors weights, a broken index or file, or names that leave the folder.
    """
    if exists(folder / INDEX_FILE):
        weight_map = _read_index(folder)
    elif exists(folder / SINGLE_FILE):
        weight_map = None
    else:
        pickles = sorted(entry.name for entry in folder.glob("*.bin")) if folder.is_dir() else []
        because = (
            "it holds pickled weights (.bin), which can run code when they are opened; "
            "save the model again as safetensors"
            if pickles
            else f"it holds neither {SINGLE_FILE} nor {INDEX_FILE}"
        )
        raise ModelFolderRefused(f"The folder's weights cannot be read: {because}.", file=SINGLE_FILE)
    held: dict[str, Held] = {}
    for file in sorted({SINGLE_FILE} if weight_map is None else set(weight_map.values())):
        found = _read_shard(plain_path(folder, file))
        wanted = set(found) if weight_map is None else {n for n, at in weight_map.items() if at == file}
        if wanted != set(found):
            raise ModelFolderRefused(
                f"{file} does not hold the tensors that {INDEX_FILE} lists for it; fetch the folder again.",
                file=file,
                tensors=sorted(wanted ^ set(found))[:16],
            )
        held |= found
    return Checkpoint(held)


def open_file(path: Path) -> Checkpoint:
    """Opens one safetensors file.

    Raises:
        ModelFolderRefused: it is none.
    """
    return Checkpoint(_read_shard(path))


def _read_index(folder: Path) -> dict[str, str]:
    body = read_side_file(folder, INDEX_FILE, _MAX_INDEX_BYTES)
    try:
        weight_map = json.loads(body or b"")["weight_map"]
        plain = all(isinstance(name, str) and isinstance(at, str) for name, at in weight_map.items())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ModelFolderRefused(f"{INDEX_FILE} cannot be read.", file=INDEX_FILE) from error
    if not plain or not weight_map:
        raise ModelFolderRefused(f"{INDEX_FILE} does not map tensors to files.", file=INDEX_FILE)
    for file in set(weight_map.values()):
        if not file.endswith(".safetensors"):
            raise ModelFolderRefused(
                f"{INDEX_FILE} names {file[:80]!r}, which is no safetensors file.", file=INDEX_FILE
            )
    return dict(weight_map)


def _read_shard(path: Path) -> dict[str, Held]:
    try:
        with open_plain_file(path, _MAX_SHARD_BYTES) as (stream, size_bytes):
            header = read_header(stream, size_bytes)
    except BundleRefused as error:
        raise ModelFolderRefused(f"{path.name}: {error.sentence}", file=path.name) from error
    data_begin = _LENGTH_PREFIX_BYTES + header.header_bytes
    return {
        name: Held(
            file=path,
            dtype=entry.dtype,
            shape=entry.shape,
            begin=data_begin + entry.begin,
            size_bytes=entry.end - entry.begin,
        )
        for name, entry in header.tensors.items()
    }

# SPDX-License-Identifier: Apache-2.0
"""What goes over the line between the engine's process and a rank: a JSON document and tensors as bytes.

Nothing is pickled, so a line can carry no code. Knows no commands.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_PREFIX = struct.Struct("<QQ")  # bytes of the document, bytes of the tensors
_DTYPES = {"F32": torch.float32, "F64": torch.float64}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class LineClosed(ConnectionError):
    """The other end is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message.

    Attributes:
        document: JSON.
        tensors: fp32 or fp64.
    """

    document: dict[str, Any]
    tensors: Sequence[Tensor] = field(default=())


def encode(message: Message) -> bytes:
    """A message as bytes."""
    tensors = [tensor.detach().cpu().contiguous() for tensor in message.tensors]
    described = [{"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape)} for tensor in tensors]
    head = json.dumps([message.document, described], separators=(",", ":")).encode()
    parts = [tensor.view(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]
    return b"".join([_PREFIX.pack(len(head), sum(map(len, parts))), head, *parts])


def receive(line: socket.socket) -> Message:
    """The next message.

    Raises:
        LineClosed: the other end is gone.
        TimeoutError: the line's timeout passed.
    """
    head_bytes, tensor_bytes = _PREFIX.unpack(_exactly(line, _PREFIX.size))
    document, described = json.loads(_exactly(line, head_bytes))
    payload = _exactly(line, tensor_bytes)
    tensors, begin = [], 0
    for one in described:
        dtype, shape = _DTYPES[one["dtype"]], torch.Size(one["shape"])
        end = begin + shape.numel() * dtype.itemsize
        flat = torch.frombuffer(payload, dtype=torch.uint8)[begin:end] if end > begin else torch.empty(0)
        tensors.append(flat.clone().view(dtype).view(shape) if end > begin else flat.to(dtype).view(shape))
        begin = end
    return Message(document=document, tensors=tensors)


def _exactly(line: socket.socket, n_bytes: int) -> bytearray:
    """So many bytes, in one buffer."""
    buffer = bytearray(n_bytes)
    fill(line, memoryview(buffer))
    return buffer


def fill(line: socket.socket, view: memoryview) -> None:
    """Fills memory with what comes.

    Raises:
        LineClosed: the other end is gone.
        TimeoutError: the line's timeout passed.
    """
    while view:
        n_read = line.recv_into(view)
        if not n_read:
            raise LineClosed
        view = view[n_read:]

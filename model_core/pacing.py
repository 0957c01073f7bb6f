# SPDX-License-Identifier: Apache-2.0
"""Long work over bytes, in pieces with pauses between them on threads that asked for those.

Whoever wakes up is given an idle core, and whoever computes on keeps the one it has until the kernel's next
tick, however low its priority. So a thread that works for long beside others that must not wait sleeps for a
moment, again and again. Knows neither threads' purposes nor what the bytes are.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import BinaryIO

# Hashed, read or written in less time than lies between two ticks of a kernel (1 to 4 ms).
PIECE_BYTES = 512 << 10

_pause_s: ContextVar[float] = ContextVar("pause_s", default=0.0)


def pause_between_pieces(pause_s: float) -> None:
    """Makes this thread sleep after every piece from now on; all others stay as they are.

    Args:
        pause_s: how long; 0 ends that.
    """
    _pause_s.set(pause_s)


def breathe() -> None:
    """Sleeps for as long as this thread said; for most, not at all."""
    if pause_s := _pause_s.get():
        time.sleep(pause_s)


def read_pieces(stream: BinaryIO) -> Iterator[bytes]:
    """What is left of a stream, with a pause after each piece."""
    while piece := stream.read(PIECE_BYTES):
        yield piece
        breathe()


def pieces_of(blocks: Iterable[memoryview]) -> Iterator[memoryview]:
    """Blocks of bytes (one dimension, one byte an item) without a copy; pauses wherever a piece is full."""
    room_bytes = PIECE_BYTES
    for block in blocks:
        rest = block
        while rest:
            yield rest[:room_bytes]
            passed, rest = min(len(rest), room_bytes), rest[room_bytes:]
            room_bytes -= passed
            if room_bytes == 0:
                breathe()
                room_bytes = PIECE_BYTES

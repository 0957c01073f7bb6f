# SPDX-License-Identifier: Apache-2.0
"""Work that no stream waits for: on threads that pause for those who do not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from model_core.pacing import pause_between_pieces

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


# With such pauses an expert of 50 MB is verified and packed in 0.45 s, without in 0.13 (decision 0044).
_PAUSE_S = 0.001


class Background:
    """Threads that pause again and again.

    What comes into a host is verified, read through and packed while its streams go on. A thread that did so
    at one stretch would keep a core until the kernel's next tick, and a step waiting for it. Their priority
    is that of all others: one of a lower priority that holds a lock which a step wants, the interpreter's or
    that of the memory map, makes the step wait for whatever runs instead of it.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(
            thread_name_prefix="background", initializer=pause_between_pieces, initargs=(_PAUSE_S,)
        )

    async def run(self, command: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Runs something on one of them; as ``asyncio.to_thread``."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, command, *arguments)

    def close(self) -> None:
        """Ends them after what they do now; what waits is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

# SPDX-License-Identifier: Apache-2.0
"""Work that no stream waits for: on threads that stand back behind all others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from cluster.priorities import stand_back
from model_core.pacing import pause_between_pieces

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


# With pieces of 512 KiB as long as verifying and packing an expert takes.
_PAUSE_S = 0.0005


def _give_way() -> None:
    stand_back()
    pause_between_pieces(_PAUSE_S)


class Background:
    """Threads of low priority that pause again and again.

    What comes into a host is verified, read through and packed while its streams go on. At equal priority
    that would take turns with the thread that computes steps, and every stream would wait as long. Without
    pauses such a thread would still keep a core until the kernel's next tick, and a step with it.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(thread_name_prefix="background", initializer=_give_way)

    async def run(self, command: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Runs something on one of them; as ``asyncio.to_thread``."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, command, *arguments)

    def close(self) -> None:
        """Ends them after what they do now; what waits is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

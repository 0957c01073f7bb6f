# SPDX-License-Identifier: Apache-2.0
"""Places in the engine: how many choices compute, how many wait, and when to say no instead."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from cluster.hosting.errors import HostOverloaded


class Places:
    """Places in the engine: at most ``total`` are taken, at most ``waiting`` wait for one."""

    def __init__(self, total: int, waiting: int) -> None:
        self._free = self._total = total
        self._may_wait = waiting
        self._waiting = 0
        self._changed = asyncio.Condition()

    @property
    def taken(self) -> int:
        """Places that are taken or waited for."""
        return self._total - self._free + self._waiting

    @contextlib.asynccontextmanager
    async def take(self, count: int) -> AsyncGenerator[None, None]:
        """Takes places for the block's duration.

        Raises:
            HostOverloaded: too many wait already.
        """
        if count > self._total or self._waiting + count > self._may_wait:
            raise HostOverloaded("This model host is busy; ask again in a second.", retry_after_s=1)
        self._waiting += count
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._free >= count)
                self._free -= count
        finally:
            self._waiting -= count
        try:
            yield
        finally:
            # Not awaited: a generator that is being closed must not wait here.
            self._free += count
            self._telling = asyncio.ensure_future(self._tell())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

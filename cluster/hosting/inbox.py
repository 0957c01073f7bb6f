# SPDX-License-Identifier: Apache-2.0
"""Where a request's stream waits for what the engine computed. Lives on one event loop; knows no gate.

A stream waits once a token. So there is one timer for many waits: when it rings it looks how long the present
one has lasted.
"""

from __future__ import annotations

import asyncio

from cluster.hosting.choice import Choice, Ending, Failure, StepToken

Item = StepToken | Ending | Failure


class Inbox:
    """What was computed and not taken yet; one reader."""

    def __init__(self) -> None:
        self._items: dict[Choice, list[Item]] = {}
        self._waiter: asyncio.Future[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until_s = 0.0

    def put(self, choice: Choice, item: Item) -> None:
        """Takes an item in."""
        self._items.setdefault(choice, []).append(item)
        self._wake(came=True)

    def take(self) -> dict[Choice, list[Item]]:
        """Everything that came, by choice, in order."""
        items, self._items = self._items, {}
        return items

    async def wait(self, patience_s: float) -> bool:
        """Waits until something has come; False where nothing did in that time."""
        if self._items:
            return True
        loop = asyncio.get_running_loop()
        self._until_s = loop.time() + patience_s
        if self._timer is None:
            self._timer = loop.call_at(self._until_s, self._ring, loop)
        self._waiter = loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def close(self) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if loop.time() >= self._until_s:
            self._wake(came=False)
        else:
            self._timer = loop.call_at(self._until_s, self._ring, loop)

    def _wake(self, *, came: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(came)

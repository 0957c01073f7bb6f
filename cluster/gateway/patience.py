# SPDX-License-Identifier: Apache-2.0
"""Bounds on waits that are many and short: one timer for all waits of a stream, not one for each.

A timer that was set for an earlier wait rings, looks how long the present one may still last, and is set
again. Knows nothing of what is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class Patience:
    """Bounds waits of one task after another; one wait at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        self._until_s = 0.0
        self._over = False

    async def wait(self, work: Awaitable[T], within_s: float) -> T:
        """What the work answers.

        Raises:
            TimeoutError: it did not in ``within_s``; it was cancelled.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (coroutines run in tasks here)
        cancelling = task.cancelling()
        self._until_s = self._loop.time() + within_s
        if self._timer is None or self._timer.when() > self._until_s:
            self.close()
            self._timer = self._loop.call_at(self._until_s, self._ring)
        self._task, self._over = task, False
        try:
            return await work
        except asyncio.CancelledError as error:
            if self._over and task.uncancel() <= cancelling:
                raise TimeoutError from error
            raise
        finally:
            self._task = None

    def close(self) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        if self._task is None:
            return
        if self._loop.time() < self._until_s:
            self._timer = self._loop.call_at(self._until_s, self._ring)
        elif not self._over:
            self._over = True
            self._task.cancel()

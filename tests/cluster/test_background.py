# SPDX-License-Identifier: Apache-2.0
"""What a host does in the background gives way to its steps by pauses, and nothing else does."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from cluster.hosting.background import Background
from model_core.pacing import breathe


def niceness() -> int:
    """Of the thread that asks."""
    return os.getpriority(os.PRIO_PROCESS, 0)


def test_background_work_is_as_important_as_what_waits_for_its_locks() -> None:
    """A thread of low priority that holds the interpreter would make every stream wait for its turn."""

    async def both() -> tuple[int, int]:
        background = Background()
        there = await background.run(niceness)
        background.close()
        return there, niceness()

    there, here = asyncio.run(both())
    assert there == here


def test_background_work_pauses_and_who_waits_for_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its pieces, for less than a tick of the kernel."""
    pauses: list[tuple[str, float]] = []
    monkeypatch.setattr(
        "model_core.pacing.time.sleep", lambda s: pauses.append((threading.current_thread().name, s))
    )

    async def both() -> None:
        background = Background()
        breathe()
        await background.run(breathe)
        background.close()

    asyncio.run(both())
    assert [name.startswith("background") for name, _ in pauses] == [True]
    assert 0 < pauses[0][1] <= 0.002


def test_background_work_gives_back_its_result_or_its_error() -> None:
    """As a call would."""

    async def work() -> None:
        background = Background()
        assert await background.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await background.run(divmod, 7, 0)
        background.close()

    asyncio.run(work())

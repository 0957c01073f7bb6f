# SPDX-License-Identifier: Apache-2.0
"""The office as a Ray actor: one entry for every question, so that refusals cross as values.

Ray wraps an exception that leaves an actor in classes of its own and prints it; a refusal is no failure of
the office, so it travels inside a ``Reply`` and is raised where it was asked for.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

from cluster.errors import UnknownOperation
from cluster.home import Home
from cluster.office.announcer import keep_announcing
from cluster.office.calendar import keep_calendar, keep_weighing
from cluster.office.checkpoints import keep_checkpoints
from cluster.office.counter import Office
from cluster.office.protocol import OfficeProtocol, Reply
from cluster.office.upkeep import keep_up
from cluster.priorities import interrupt_nobody
from model_core.errors import ProductError

log = logging.getLogger(__name__)

#: Questions that wait at the same time; long polls of hosts are most of them.
MAX_CONCURRENCY = 2000

_QUESTIONS = frozenset(name for name in vars(OfficeProtocol) if not name.startswith("_"))
_SWITCH_S = 0.0005


class OfficeActor:
    """Opens the office with the first question and answers from then on.

    An office that cannot open (another process still holds the database) says why to everyone who asks, and
    tries again with the next question; it never needs to be replaced by hand.

    Args:
        settings: the operator's choices, as a document.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        # The process is the office's own. With the usual 5 ms the writer waits that long for the interpreter
        # whenever a reader is at work, several times for each answer.
        sys.setswitchinterval(_SWITCH_S)
        # A small installation computes streams on the same machine: every question that wakes the office
        # would take a core from a step in the middle of it.
        interrupt_nobody()
        self._settings = settings
        self._opening = asyncio.Lock()
        self._office: Office | None = None
        self._own_work: list[asyncio.Task[None]] = []

    async def ask(self, question: str, arguments: tuple[Any, ...]) -> Reply:
        """Answers one question of ``OfficeProtocol``; keyword-only arguments come last, in order."""
        if question not in _QUESTIONS:
            return Reply(refusal=UnknownOperation(f"The office knows no question {question!r}."))
        try:
            return Reply(value=await self._answer(question, arguments))
        except ProductError as refusal:
            return Reply(refusal=refusal)

    async def _answer(self, question: str, arguments: tuple[Any, ...]) -> Any:
        office = self._office or await self._open()
        match question:
            case "call":
                *plain, key = arguments
                return await office.call(*plain, idempotency_key=key)
            case "fail_job":
                *plain, retry = arguments
                return await office.fail_job(*plain, retry=retry)
            case _:
                return await getattr(office, question)(*arguments)

    async def _open(self) -> Office:
        from cluster.bootstrap import open_office, read_settings

        async with self._opening:
            if self._office is None:
                office = await asyncio.to_thread(open_office, self._settings)
                settings = read_settings(self._settings)
                folder = settings.checkpoints or Home(settings.home).checkpoints
                own_work = (
                    keep_up(office, settings.request_s),
                    keep_calendar(office),
                    keep_weighing(office),
                    keep_announcing(office),
                    keep_checkpoints(office, folder),
                )
                self._own_work = [asyncio.create_task(work) for work in own_work]
                self._office = office
            return self._office

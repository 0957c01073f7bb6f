# SPDX-License-Identifier: Apache-2.0
"""The office as a Ray actor: one entry for every question, so that refusals cross as values.

Ray wraps an exception that leaves an actor in classes of its own and prints it; a refusal is no failure of
the office, so it travels inside a ``Reply`` and is raised where it was asked for.
"""

from __future__ import annotations

from typing import Any

from cluster.errors import UnknownOperation
from cluster.office.counter import Office
from cluster.office.protocol import OfficeProtocol, Reply
from model_core.errors import ProductError

#: Questions that wait at the same time; long polls of hosts are most of them.
MAX_CONCURRENCY = 2000

_QUESTIONS = frozenset(name for name in vars(OfficeProtocol) if not name.startswith("_"))


class OfficeActor:
    """Opens the office when the actor starts.

    Args:
        settings: the operator's choices, as a document.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        from cluster.bootstrap import open_office

        self._office: Office = open_office(settings)

    async def ask(self, question: str, arguments: tuple[Any, ...]) -> Reply:
        """Answers one question of ``OfficeProtocol``; keyword-only arguments come last, in order."""
        if question not in _QUESTIONS:
            return Reply(refusal=UnknownOperation(f"The office knows no question {question!r}."))
        try:
            return Reply(value=await self._answer(question, arguments))
        except ProductError as refusal:
            return Reply(refusal=refusal)

    async def _answer(self, question: str, arguments: tuple[Any, ...]) -> Any:
        match question:
            case "call":
                *plain, key = arguments
                return await self._office.call(*plain, idempotency_key=key)
            case "fail_job":
                *plain, retry = arguments
                return await self._office.fail_job(*plain, retry=retry)
            case _:
                return await getattr(self._office, question)(*arguments)

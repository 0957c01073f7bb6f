# SPDX-License-Identifier: Apache-2.0
"""One signed-in person's request to the console, and the console itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from cluster.gateway.console.render import Renderer
from cluster.gateway.door import Door
from cluster.gateway.errors import MissingKey
from cluster.gateway.sessions import Session
from cluster.gateway.threshold import request_id_of
from cluster.operations.table import Operation
from cluster.problems import problem_of
from model_core.errors import ProductError

#: What a page says after an act; the address names the note, never its text.
NOTES = {
    "withdrawn": "Withdrawn. Model hosts stop using the expert at their next step.",
    "forbidden": "Forbidden, at once.",
    "suspended": "Suspended. It has left every composition.",
    "revoked": "Revoked, at once.",
    "removed": "Removed, at once.",
    "drafted": "Drafted. It takes effect when somebody else approves it.",
    "approved": "Approved and published.",
    "scheduled": "Approved. The office publishes it at its moment.",
    "saved": "Saved as the next version.",
    "revised": "Closed, and opened again as a draft.",
    "rolled_back": "Undone where that narrows; what would widen waits for somebody else's approval.",
    "stopped": "Stopped, at once. Somebody else signs within a day.",
    "signed": "Signed.",
    "asked": "Asked for. Nothing is removed before somebody else approves.",
    "erasing": "Approved. It serves nowhere any more, and its copies go one after the other.",
    "held": "Held. Nothing of it is erased until the hold is lifted.",
    "lifted": "Lifted.",
    "noted": "Noted.",
    "rejected": "Rejected. Nothing was published.",
    "given_up": "Withdrawn. Nothing was published.",
    "submitted": "Submitted. It starts when there is room.",
    "cancelling": "Its end was asked for.",
    "uploaded": "Received and registered.",
    "settled": "Settled.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """A request of a signed-in person.

    Attributes:
        session: who.
        request: what the browser sent.
        console: where.
    """

    session: Session
    request: Request
    console: Console

    async def call(self, operation: str, **fields: Any) -> dict[str, Any]:
        """Calls an operation with the person's key."""
        return await self.console.door.office.call(operation, self.session.credential, fields)

    def may(self, operation: str) -> bool:
        """Whether the person's roles open an operation."""
        return self.console.may(self.session, operation)

    def query(self, name: str) -> str | None:
        """A query field, or None where it is absent or empty."""
        return self.request.query_params.get(name) or None


class Console:
    """The console: its renderer, and what its pages reach."""

    def __init__(self, *, door: Door, operations: Mapping[str, Operation]) -> None:
        self.door = door
        self.operations = operations
        self._renderer = Renderer(self.may)

    def may(self, session: Session, operation: str) -> bool:
        """Whether a session's roles open an operation."""
        return bool({str(role) for role in self.operations[operation].roles} & session.roles)

    def visit(self, request: Request) -> Visit:
        """The signed-in person's visit.

        Raises:
            MissingKey: nobody is signed in.
        """
        session = self.door.sessions.find(request)
        if session is None:
            raise MissingKey("Sign in with your key to see this page.")
        return Visit(session=session, request=request, console=self)

    def page(self, template: str, visit: Visit, **values: Any) -> HTMLResponse:
        """A page for a signed-in person."""
        query = visit.request.query_params
        epoch = query.get("epoch", "")
        note = NOTES.get(query.get("note", ""))
        if note and epoch.isascii() and epoch.isdigit() and len(epoch) < 12:
            note = f"{note} Epoch {int(epoch)} is in force."
        return self._renderer.page(template, visit.session, note=note, **values)

    def sign_in_page(self, request: Request, status: int = 200, sentence: str | None = None) -> Response:
        """The sign-in page, the only one that shows itself to strangers."""
        del request
        answer = self._renderer.page("sign_in.html", None, status, sentence=sentence)
        if status == 401:
            answer.headers["WWW-Authenticate"] = 'Bearer realm="marketplace"'
        return answer

    def refusal(self, request: Request, error: BaseException) -> Response:
        """A refusal as a page; whoever is not (or no longer) known sees the sign-in page instead."""
        problem = problem_of(error)
        session = self.door.sessions.find(request)
        if problem.status == 401 or problem.code == "tenant_suspended" or session is None:
            if session is not None:
                self.door.sessions.close_credential(session.credential)
            sentence = problem.detail if isinstance(error, ProductError) else None
            status = problem.status if problem.status in {401, 403} else 401
            return self.sign_in_page(request, status=status, sentence=sentence)
        return self._renderer.page(
            "problem.html",
            session,
            problem.status,
            nav="",
            note=None,
            problem=problem,
            request_id=request_id_of(request),
        )

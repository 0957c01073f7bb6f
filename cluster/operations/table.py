# SPDX-License-Identifier: Apache-2.0
"""What an operation is: one row of the table of everything a person or program may ask of the marketplace.

The gateway derives its routes and its OpenAPI description from these rows, the office runs them, the
command line and the console call them by name. A row says who may call it, so "who may do what" is one
visible table and not a decorator here and there. This file knows neither HTTP nor Ray nor SQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import RoleRequired
from tenants.roles import Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk
    from model_core.packing.bundle import CheckedBundle
    from tenants.roles import Principal

Method = Literal["GET", "POST", "PUT", "DELETE"]

_PLACEHOLDER = re.compile(r"{([a-z_]+)}")

ANYONE = frozenset(Role)
#: The platform's staff and its auditors.
STAFF = frozenset({Role.AUDITOR, Role.COMPLIANCE, Role.OPERATOR})
#: Who may read what is an owner's, of their own tenant or of all.
READERS = STAFF | {Role.OWNER}
#: Who may write changes, review and undo them, and stop things; what each may put into one is asked per edit.
EDITORS = frozenset({Role.OWNER, Role.DEVELOPER, Role.COMPLIANCE, Role.OPERATOR})

#: Longest weighing of an expert; whoever waits for an operation that weighs waits a little longer.
LONGEST_WEIGHING_S = 600.0


class Request(BaseModel):
    """Family of request documents: unknown fields are refused, because a typo must not widen anything."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(BaseModel):
    """Family of answer documents: readers ignore fields they do not know, so fields can be added."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Nothing(Request):
    """The request of operations that need no input."""


class Page(Request):
    """A page of a list.

    ``after`` is the ``next`` of the page before; leave it out for the first page.
    """

    limit: int = Field(default=100, ge=1, le=500, description="most rows to return")
    after: str | None = Field(default=None, max_length=200, description="`next` of the page before")


def several(value: object) -> object:
    """Lets a lone text pass as a list of one: a query string cannot tell the two apart."""
    return [value] if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """Says that an operation takes a file as its HTTP body, streamed by the gateway to a staging file.

    The gateway writes the body under the staging folder as ``<upload id>``, then calls the operation with
    the field ``upload`` set to an object that holds this ``id`` and what ``inspect`` found. A caller cannot
    set that field.

    Attributes:
        media_type: what the body holds; the settings bound its size.
        inspect: reads the staged file and answers the fields that the operation needs from it. It runs
            in the gateway, before and outside the unit of work, for reading a large file there would
            hold up everybody else's writes.
    """

    media_type: str
    inspect: Callable[[Path], dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One row: a verb on a noun.

    Attributes:
        name: ``noun.verb``; the key under which everybody finds it.
        method: HTTP method; everything but GET changes state and is chained into the audit.
        path: path below ``/api/v1``; its placeholders are fields of the request.
        roles: who may call it; a principal needs one of them.
        request: the document that path, query and body are merged into.
        response: the document that comes back.
        run: the work, inside one unit of work: ``run(desk, principal, request) -> response``.
        summary: one sentence.
        example: a request that validates.
        upload: set when the HTTP body is a file and not JSON.
        unaudited: request fields that stay out of the audit chain (bulk or personal text).
        unchained: a write that leaves no audit fact (a preview, a rehearsal).
        secret_answer: the answer holds a secret and must not be stored, not even to be repeated for an
            idempotency key.
        weighs: set when the operation admits a bundle: finds in a reading unit of work what is to be weighed,
            with every refusal that costs nothing. The office weighs it outside any unit of work and lays the
            result on the desk (``Desk.weighed``) before ``run``.
        rehearses: reads by carrying out an edit and rolling it back, so it needs a unit of work that could
            write although it keeps nothing.
        isolated: reads and writes rows of the caller's own tenant, and what others show it, and nothing else;
            the database then hides the rest, whatever the code asks for. Staff that sees everything is held
            to nothing.
        reads: a question that is too long for an address and therefore posted; it changes nothing, so it may
            be asked again and needs no idempotency key.
        tag: field of the answer that is its entity tag (a version), for whoever edits by it.
        if_match: field of the request that an ``If-Match`` header fills in: the version that was read.
    """

    name: str
    method: Method
    path: str
    roles: frozenset[Role]
    request: type[Request]
    response: type[BaseModel]
    run: Callable[[Desk, Principal, Any], BaseModel]
    summary: str
    example: Mapping[str, Any] = field(default_factory=dict)
    upload: Upload | None = None
    unaudited: frozenset[str] = frozenset()
    unchained: bool = False
    secret_answer: bool = False
    weighs: Callable[[Desk, Principal, Any], CheckedBundle] | None = None
    rehearses: bool = False
    isolated: bool = False
    reads: bool = False
    tag: str = ""
    if_match: str = ""

    @property
    def noun(self) -> str:
        """The part of the name before the dot."""
        return self.name.partition(".")[0]

    @property
    def writes(self) -> bool:
        """Whether a successful call is chained into the audit."""
        return not (self.only_reads or self.unchained)

    @property
    def only_reads(self) -> bool:
        """Whether a call leaves everything as it was."""
        return self.method == "GET" or self.reads

    @property
    def success_status(self) -> int:
        """HTTP status of a call that worked: 201 where something new exists."""
        return 201 if self.name.rpartition(".")[2] in {"create", "submit", "import", "upload"} else 200

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Names of the request fields that the path carries."""
        return tuple(_PLACEHOLDER.findall(self.path))

    def check_roles(self, held: Iterable[str]) -> None:
        """Refuses a principal whom the row does not name.

        Args:
            held: names of the principal's roles.

        Raises:
            RoleRequired: with the roles that may.
        """
        if not {str(role) for role in self.roles} & {str(role) for role in held}:
            needed = sorted(str(role) for role in self.roles)
            raise RoleRequired(
                f"{self.name} needs one of the roles: {', '.join(needed)}. Use a key that has one.",
                operation=self.name,
                roles=needed,
            )

    def subject(self, request: BaseModel, response: BaseModel) -> str:
        """Names what a call acted on, for the audit: ``noun/id``.

        The id is the path's, else the answer's ``id`` or ``name`` (a thing that was just made).
        """
        ids = [str(getattr(request, name)) for name in self.placeholders]
        if not ids:
            made = getattr(response, "id", None) or getattr(response, "name", None)
            ids = [str(made)] if made else []
        return "/".join((self.noun, *ids))

    def audit_facts(self, request: BaseModel) -> dict[str, Any]:
        """The request's fields that belong into the audit chain, JSON-able."""
        facts: dict[str, Any] = request.model_dump(
            mode="json", exclude=set(self.unaudited), exclude_none=True
        )
        return facts

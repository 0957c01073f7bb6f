# SPDX-License-Identifier: Apache-2.0
"""How errors look from outside: RFC 9457 problem documents for the gateway, exit codes for the command line.

Status, title and exit code of each come from one table (error_catalogue.py); the inverse turns a received
document back into the error that was raised. An error that is not a ``ProductError`` is shown as
``internal`` without its text, so inner details never leak by accident.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from cluster.error_catalogue import CATALOGUE, Row, row_of
from cluster.errors import InvalidRequest, RemoteProblem
from model_core.errors import ProductError

PROBLEM_MEDIA_TYPE = "application/problem+json"
_TYPE_PREFIX = "urn:expert-marketplace:problem:"

#: Modules that define the errors of each floor; importing them makes every code known.
FAMILIES = (
    "model_core.errors",
    "tenants.errors",
    "tenants.workshop.launch",
    "tenants.workshop.protocol",
    "policy.errors",
    "policy.cards.errors",
    "cluster.errors",
    "cluster.gateway.errors",
    "cluster.hosting.errors",
    "cluster.jobs.errors",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """An RFC 9457 problem document.

    Attributes:
        status: HTTP status.
        code: stable code; API once released.
        title: does not vary between occurrences.
        detail: the sentence: what happened and what to do next.
        facts: JSON-able details for programs.
        exit_code: what the command line returns.
    """

    status: int
    code: str
    title: str
    detail: str
    facts: Mapping[str, Any]
    exit_code: int

    def document(self, instance: str | None = None) -> dict[str, Any]:
        """The JSON body.

        Args:
            instance: names this occurrence, usually the request id.
        """
        body: dict[str, Any] = {
            "type": _TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "facts": dict(self.facts),
        }
        if instance is not None:
            body["instance"] = instance
        return body


def problem_of(error: BaseException) -> Problem:
    """Shows any error: an expected one with its sentence, any other as ``internal`` without its text."""
    if isinstance(error, ValidationError):
        error = invalid_request(error)
    if isinstance(error, RemoteProblem):
        row = Row(status=error.remote_status, title="Problem reported by the marketplace")
        return _shown(error, error.remote_code, row)
    if isinstance(error, ProductError):
        return _shown(error, error.code, row_of(type(error)))
    row = CATALOGUE["internal"]
    sentence = (
        "Something unexpected happened on our side. Try again; if it stays, tell the operator the request id."
    )
    return Problem(
        status=row.status,
        code="internal",
        title=row.title,
        detail=sentence,
        facts={},
        exit_code=row.exit_code,
    )


def invalid_request(error: ValidationError) -> InvalidRequest:
    """Turns a validation failure into a refusal that names fields and reasons, never the rejected values."""
    fields = [
        {"field": ".".join(str(part) for part in found["loc"]) or "body", "reason": found["msg"]}
        for found in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    first = fields[0] if fields else {"field": "body", "reason": "is not valid"}
    return InvalidRequest(
        f"The field {first['field']!r} is not acceptable: {first['reason']}. Correct it and try again.",
        fields=fields,
    )


def error_of(document: Mapping[str, Any]) -> ProductError:
    """The inverse of :meth:`Problem.document`: the error that the sender raised.

    A code that this version does not know becomes a :class:`cluster.errors.RemoteProblem` with the sender's
    code and status, so an older client still shows the sentence.
    """
    code = str(document.get("code", "remote_problem"))
    sentence = str(
        document.get("detail") or document.get("title") or "The marketplace refused without a reason."
    )
    facts = document.get("facts")
    facts = dict(facts) if isinstance(facts, Mapping) else {}
    kind = _kinds().get(code)
    if kind is None:
        status = document.get("status")
        facts |= {"remote_code": code, "remote_status": status if isinstance(status, int) else 500}
        return RemoteProblem(sentence, **facts)
    return kind.rebuild(sentence, facts)


def product_errors() -> Iterator[type[ProductError]]:
    """Every error class of the four floors, the root first."""
    for family in FAMILIES:
        import_module(family)
    floors = {family.partition(".")[0] for family in FAMILIES}
    seen: set[type[ProductError]] = set()
    waiting = [ProductError]
    while waiting:
        kind = waiting.pop(0)
        if kind in seen or kind.__module__.partition(".")[0] not in floors:
            continue
        seen.add(kind)
        yield kind
        waiting.extend(kind.__subclasses__())


@cache
def _kinds() -> Mapping[str, type[ProductError]]:
    # Families come before their members, and a member that inherits its code must not take their place.
    kinds: dict[str, type[ProductError]] = {}
    for kind in product_errors():
        kinds.setdefault(kind.code, kind)
    return kinds


def _shown(error: ProductError, code: str, row: Row) -> Problem:
    return Problem(
        status=row.status,
        code=code,
        title=row.title,
        detail=error.sentence,
        facts=error.facts,
        exit_code=row.exit_code,
    )

# SPDX-License-Identifier: Apache-2.0
"""What the OpenAPI description says of the doors that are not made of the table: AuthZEN's, and streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from cluster.gateway.authzen_shapes import (
    ACCESS,
    WELL_KNOWN,
    Batch,
    Decided,
    DecidedAll,
    Evaluation,
    Found,
    Metadata,
    Search,
)

Mode = Literal["validation", "serialization"]

_PLAIN_REFUSALS = {
    "400": "The request cannot be understood, or would not be understood in full.",
    "401": "No key, or one that opens nothing.",
    "403": "The tenant is suspended.",
    "404": "Nothing lives at this address.",
    "409": "It contradicts the state of things.",
    "503": "The office does not answer; ask again.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherDoor:
    """A route beside the table.

    Attributes:
        name: its ``operationId``.
        method: HTTP method.
        path: whole path.
        summary: one sentence.
        request: the body, if there is one.
        answers: what may come back, as one of several documents; none for a stream of events.
        parameters: what may be said beside the body, as the description writes it.
    """

    name: str
    method: str
    path: str
    summary: str
    request: type[BaseModel] | None
    answers: tuple[type[BaseModel], ...]
    parameters: tuple[dict[str, Any], ...] = ()

    @property
    def streams(self) -> bool:
        """Whether the answer goes on until somebody hangs up."""
        return not self.answers

    def describe(self, schema_of: Callable[[type[BaseModel], Mode], dict[str, Any]]) -> dict[str, Any]:
        """The operation object; ``schema_of`` finds a model's reference by model and mode."""
        found = [schema_of(kind, "serialization") for kind in self.answers]
        schema = found[0] if len(found) == 1 else {"anyOf": found}
        events = {"text/event-stream": {"schema": {"type": "string"}}}
        answer = events if self.streams else {"application/json": {"schema": schema}}
        good = {"description": "Done.", "content": answer}
        problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
        plain = {"text/plain": {"schema": {"type": "string"}}}
        content = plain if self.path.startswith(ACCESS) else problem
        responses: dict[str, Any] = {"200": good}
        for status, text in _PLAIN_REFUSALS.items():
            responses[status] = {"description": text, "content": content}
        described: dict[str, Any] = {
            "operationId": self.name,
            "summary": self.summary,
            "tags": [self.name.partition(".")[0]],
            "responses": responses,
        }
        if self.streams:
            responses["422"] = {
                "description": "It says where to begin as something else.",
                "content": content,
            }
            responses["429"] = {"description": "Every place for a stream is taken.", "content": content}
        if self.parameters:
            described["parameters"] = list(self.parameters)
        if self.request is not None:
            body = {"schema": schema_of(self.request, "validation")}
            described["requestBody"] = {"required": True, "content": {"application/json": body}}
        return described


def _authzen(name: str, summary: str, request: type[BaseModel], *answers: type[BaseModel]) -> OtherDoor:
    path = f"{ACCESS}/{name.replace('_', '/')}"
    return OtherDoor(
        name=f"authzen.{name}", method="POST", path=path, summary=summary, request=request, answers=answers
    )


OTHER_DOORS = (
    _authzen("evaluation", "Decides one request.", Evaluation, Decided),
    _authzen("evaluations", "Decides a batch of requests.", Batch, DecidedAll, Decided),
    _authzen("search_subject", "Finds who may use a resource.", Search, Found),
    _authzen("search_resource", "Finds the experts that a subject may use.", Search, Found),
    _authzen("search_action", "Finds what a subject may do with a resource.", Search, Found),
    OtherDoor(
        name="authzen.configuration",
        method="GET",
        path=WELL_KNOWN,
        summary="Names the addresses of the authorization API.",
        request=None,
        answers=(Metadata,),
    ),
    OtherDoor(
        name="epochs.stream",
        method="GET",
        path="/api/v1/epochs/stream",
        summary="Tells of every epoch as it is published, each an event whose id is the epoch's number.",
        request=None,
        answers=(),
        parameters=(
            {
                "in": "query",
                "name": "after",
                "required": False,
                "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999, "default": 0},
                "description": "Begins with the epoch after this one.",
            },
            {
                "in": "header",
                "name": "Last-Event-ID",
                "required": False,
                "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
                "description": "The last epoch that was seen; it goes before ``after``.",
            },
        ),
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""The documents of AuthZEN's Authorization API 1.0, and how they become questions about compositions.

=================================  ==================================================================
subject ``tenant``                 who would use the experts
subject ``deployment``             an endpoint, with everything that it says of its use
action name                        an action of the vocabulary (``infer``, ``evaluate``, …)
resource ``expert``                one expert version, by expert id or bundle digest
resource ``composition``           the candidates in its properties (all if there are none) together
context ``purpose``, ``region``,   the use; an endpoint has its own, which these replace
``commercial``, ``base_digest``
context ``time``                   the moment (RFC 3339 with an offset); now if left out
=================================  ==================================================================

The standard lets a decision point ignore what it does not know. This one refuses it: an attribute that was
meant to narrow a request must not be lost on the way. Knows nothing of HTTP or of who asks.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import InvalidRequest

#: Where the standard's addresses begin, and where a client finds them.
ACCESS = "/access/v1"
WELL_KNOWN = "/.well-known/authzen-configuration"
MAX_EVALUATIONS = 50
MAX_PAGE = 100

Semantic = Literal["execute_all", "deny_on_first_deny", "permit_on_first_permit"]
Name = Annotated[str, Field(min_length=1, max_length=100)]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CONTEXT = frozenset({"purpose", "region", "commercial", "base_digest", "time"})


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Entity(_Document):
    """A subject or resource."""

    type: Name
    id: Name | None = None
    properties: dict[str, Any] = Field(default_factory=dict)


class Act(_Document):
    """What the subject would do."""

    name: Name
    properties: dict[str, Any] = Field(default_factory=dict)


class Evaluation(_Document):
    """One request for a decision; in a batch what is left out is taken from the batch."""

    subject: Entity | None = None
    action: Act | None = None
    resource: Entity | None = None
    context: dict[str, Any] | None = None


class Options(_Document):
    """How far a batch is evaluated."""

    evaluations_semantic: Semantic = "execute_all"


class Batch(Evaluation):
    """Several requests with what they share."""

    evaluations: tuple[Evaluation, ...] = Field(default=(), max_length=MAX_EVALUATIONS)
    options: Options = Options()


class PageAsked(_Document):
    """Which part of the results."""

    token: str = Field(default="", max_length=200)
    limit: int = Field(default=MAX_PAGE, ge=1, le=MAX_PAGE)
    properties: dict[str, Any] = Field(default_factory=dict)


class Search(Evaluation):
    """What would be permitted: the part that is searched for is named by its type alone."""

    page: PageAsked = PageAsked()


class Decided(BaseModel):
    """A decision with what it rests on."""

    decision: bool
    context: dict[str, Any]


class DecidedAll(BaseModel):
    """The decisions of a batch, in its order."""

    evaluations: tuple[Decided, ...]


class Found(BaseModel):
    """What a search found, and where it goes on."""

    results: tuple[dict[str, str], ...]
    page: dict[str, str]


class Metadata(BaseModel):
    """Where the authorization API answers."""

    policy_decision_point: str
    access_evaluation_endpoint: str
    access_evaluations_endpoint: str
    search_subject_endpoint: str
    search_resource_endpoint: str
    search_action_endpoint: str


def question_of(asked: Evaluation) -> dict[str, Any]:
    """The fields of ``compositions.explain`` that ask what a request for a decision asks.

    Raises:
        InvalidRequest: a part is missing, or says something that would be ignored.
    """
    if asked.subject is None or asked.action is None or asked.resource is None:
        raise _refused("subject", "an evaluation needs a subject, an action and a resource")
    fields: dict[str, Any] = {"action": asked.action.name}
    if asked.action.properties or asked.subject.properties:
        raise _refused("properties", "subjects and actions have no properties here")
    if asked.subject.type not in {"tenant", "deployment"} or asked.subject.id is None:
        raise _refused("subject", "a subject is a tenant or a deployment, with its id")
    fields[asked.subject.type] = asked.subject.id
    fields["candidates"] = _candidates(asked.resource)
    return fields | _use(asked.context or {})


def _candidates(resource: Entity) -> str | list[str]:
    if resource.type == "expert" and resource.id is not None and not resource.properties:
        return [resource.id]
    if resource.type == "composition" and not resource.properties.keys() - {"candidates"}:
        named: str | list[str] = resource.properties.get("candidates", "*")
        if named == "*" or (isinstance(named, list) and all(isinstance(one, str) for one in named)):
            return named
    raise _refused("resource", "a resource is an expert with its id, or a composition with its candidates")


def _use(context: dict[str, Any]) -> dict[str, Any]:
    if unknown := sorted(context.keys() - _CONTEXT):
        raise _refused(f"context.{unknown[0][:80]}", "is not known here and would be ignored")
    fields = {name: value for name, value in context.items() if name != "time"}
    if "time" in context:
        fields["at_us"] = _moment_us(context["time"])
    return fields


def _moment_us(text: object) -> int:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise _refused("context.time", "is not a moment with an offset, as in 2026-01-31T12:00:00Z")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _refused(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"The field {field!r} is not acceptable: {reason}.", fields=[{"field": field, "reason": reason}]
    )

# SPDX-License-Identifier: Apache-2.0
"""AuthZEN's Authorization API 1.0: any enforcement point may ask what this marketplace decides.

Every answer is that of ``compositions.explain`` to the same key, so whoever asks here learns what they would
learn there and no more; a search tries one question per candidate among what the key may list. Refusals have
the standard's form: a status and a sentence. What exists, but not for the asker, is a denial like any other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.errors import InvalidRequest
from cluster.gateway.answers import plain_status
from cluster.gateway.authzen_shapes import (
    ACCESS,
    WELL_KNOWN,
    Batch,
    Decided,
    DecidedAll,
    Entity,
    Evaluation,
    Found,
    Metadata,
    Search,
    question_of,
)
from cluster.gateway.bodies import read_json_object
from cluster.gateway.door import Door
from cluster.gateway.sessions import bearer
from cluster.problems import invalid_request, problem_of
from model_core.errors import ProductError
from policy.facts.terms import ACTIONS

_MAX_REQUEST_ID = 200
_PLAIN = ("outcome", "codes", "reasons", "nearest_miss", "obligations", "valid_until_us")

Kind = TypeVar("Kind", bound=BaseModel)
Answering = Callable[[Door, str, Any], Awaitable[BaseModel]]


def add_authzen(app: FastAPI, door: Door) -> None:
    """Adds the routes of the standard."""

    def route(path: str, kind: type[BaseModel], answer: Answering) -> None:
        async def handle(request: Request) -> Response:
            credential = bearer(request)
            await door.office.identify(credential)
            asked = _read(kind, await read_json_object(request))
            body = await answer(door, credential, asked)
            return JSONResponse(body.model_dump(mode="json"), headers=_named(request))

        app.add_api_route(ACCESS + path, handle, methods=["POST"], include_in_schema=False)

    async def metadata(request: Request) -> Response:
        await door.office.identify(bearer(request))
        return JSONResponse(_metadata(str(request.base_url).rstrip("/")), headers=_named(request))

    route("/evaluation", Evaluation, evaluate)
    route("/evaluations", Batch, evaluate_all)
    route("/search/subject", Search, search_subject)
    route("/search/resource", Search, search_resource)
    route("/search/action", Search, search_action)
    app.add_api_route(WELL_KNOWN, metadata, methods=["GET"], include_in_schema=False)


async def evaluate(door: Door, credential: str, asked: Evaluation) -> Decided:
    """One decision.

    Raises:
        InvalidRequest: the request cannot be understood.
    """
    return await _decided(door, credential, question_of(asked), asked.resource)


async def evaluate_all(door: Door, credential: str, batch: Batch) -> Decided | DecidedAll:
    """The decisions of a batch; one that cannot be understood is a denial that says so.

    Raises:
        InvalidRequest: a batch without evaluations is one evaluation, and cannot be understood.
    """
    if not batch.evaluations:
        return await evaluate(door, credential, batch)
    stops_at = {"deny_on_first_deny": False, "permit_on_first_permit": True}
    stop = stops_at.get(batch.options.evaluations_semantic)
    found: list[Decided] = []
    for one in batch.evaluations:
        whole = Evaluation(
            subject=one.subject or batch.subject,
            action=one.action or batch.action,
            resource=one.resource or batch.resource,
            context=batch.context if one.context is None else one.context,
        )
        try:
            found.append(await evaluate(door, credential, whole))
        except ProductError as error:
            found.append(_error(error))
        if found[-1].decision is stop:
            break
    return DecidedAll(evaluations=tuple(found))


async def search_resource(door: Door, credential: str, search: Search) -> Found:
    """The experts that the subject may use so."""
    if search.resource is None or search.resource.type != "expert":
        raise InvalidRequest("Resources of the type expert alone can be searched for.")
    together = search.model_copy(update={"resource": Entity(type="composition")})
    answer = await door.office.call("compositions.decide", credential, question_of(together))
    ids = sorted({one["expert_id"] for one in answer["experts"] if one["verdict"] == "permit"})
    return _page([{"type": "expert", "id": one} for one in ids], search, lambda one: one["id"])


async def search_action(door: Door, credential: str, search: Search) -> Found:
    """What the subject may do with the resource."""
    found = []
    for name in ACTIONS:
        asked = Evaluation.model_validate(search.model_dump(exclude={"page"}) | {"action": {"name": name}})
        if (await evaluate(door, credential, asked)).decision:
            found.append({"name": name})
    return _page(found, search, lambda one: one["name"])


async def search_subject(door: Door, credential: str, search: Search) -> Found:
    """The tenants or deployments, among those that the key may list, that may use the resource so."""
    kinds = {"tenant": ("tenants.list", "slug"), "deployment": ("deployments.list", "name")}
    if search.subject is None or search.subject.type not in kinds:
        raise InvalidRequest("Subjects of the types tenant and deployment alone can be searched for.")
    operation, field = kinds[search.subject.type]
    fields: dict[str, Any] = {"limit": search.page.limit}
    if search.page.token:
        fields["after"] = search.page.token
    listed = await door.office.call(operation, credential, fields)
    names = [row[field] for row in listed["items"]]
    found = [
        {"type": search.subject.type, "id": name} async for name in _may(door, credential, search, names)
    ]
    return Found(results=tuple(found), page={"next_token": listed["next"] or ""})


async def _may(door: Door, credential: str, search: Search, names: list[str]) -> AsyncIterator[str]:
    kind = search.subject.type if search.subject else ""
    for name in names:
        asked = search.model_copy(update={"subject": Entity(type=kind, id=name)})
        if (await evaluate(door, credential, asked)).decision:
            yield name


async def _decided(door: Door, credential: str, question: dict[str, Any], resource: Entity | None) -> Decided:
    try:
        answer = await door.office.call("compositions.explain", credential, question)
    except ProductError as error:
        if problem_of(error).status in {403, 404}:
            return _error(error)
        raise
    rests_on = {name: answer[name] for name in ("epoch", "at_us", "snapshot_digest", "output_digest")}
    if resource is not None and resource.type == "expert":
        found = [one for one in answer["experts"] if resource.id in (one["expert_id"], one["bundle_digest"])]
        said = {name: found[0][name] for name in _PLAIN} if found else {"codes": ["not_visible"]}
        permitted = bool(found) and found[0]["verdict"] == "permit" and answer["verdict"] == "permit"
        return Decided(decision=permitted, context=rests_on | said)
    names = ("composition_digest", "members", "reasons", "obligations", "valid_until_us")
    said = {name: answer[name] for name in names}
    return Decided(decision=answer["verdict"] == "permit", context=rests_on | said)


def _error(error: ProductError) -> Decided:
    problem = problem_of(error)
    said = {"status": plain_status(problem), "message": problem.detail, "code": problem.code}
    return Decided(decision=False, context={"error": said})


def _page(found: list[dict[str, str]], search: Search, key: Callable[[dict[str, str]], str]) -> Found:
    names = [key(one) for one in found]
    if search.page.token and search.page.token not in names:
        raise InvalidRequest("The page's token is none of this search. Begin it again without one.")
    start = names.index(search.page.token) + 1 if search.page.token else 0
    shown = found[start : start + search.page.limit]
    more = len(found) > start + len(shown)
    return Found(results=tuple(shown), page={"next_token": key(shown[-1]) if more and shown else ""})


def _read(kind: type[Kind], document: dict[str, Any]) -> Kind:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise invalid_request(error) from None


def _named(request: Request) -> dict[str, str]:
    """The caller's own request id comes back; without one the door's does."""
    given = request.headers.get("x-request-id", "")
    fits = 0 < len(given) <= _MAX_REQUEST_ID and given.isascii() and given.isprintable()
    return {"X-Request-ID": given} if fits else {}


def _metadata(base: str) -> dict[str, str]:
    found = Metadata(
        policy_decision_point=base,
        access_evaluation_endpoint=f"{base}{ACCESS}/evaluation",
        access_evaluations_endpoint=f"{base}{ACCESS}/evaluations",
        search_subject_endpoint=f"{base}{ACCESS}/search/subject",
        search_resource_endpoint=f"{base}{ACCESS}/search/resource",
        search_action_endpoint=f"{base}{ACCESS}/search/action",
    )
    return found.model_dump()

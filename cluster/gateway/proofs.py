# SPDX-License-Identifier: Apache-2.0
"""Two questions about a deployment that a host answers with numbers instead of text.

``score`` says how well it predicts given texts, under its whole composition or a subset; ``probe`` gives the
digest of its logits for a text, to be compared with a process that never held an expert. Both are for the
deployment's own tenant and for those who oversee the platform.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.errors import RoleRequired
from cluster.gateway.bodies import read_json_object
from cluster.gateway.door import Door
from cluster.gateway.management import PREFIX
from cluster.gateway.sessions import bearer
from cluster.hosting.messages import MAX_TEXT_CHARACTERS, MAX_TEXTS
from cluster.problems import invalid_request
from tenants.roles import PLATFORM_TENANT

_MAX_BODY_BYTES = 16 << 20

ScorableText = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)]


class ScoreRequest(BaseModel):
    """Texts to score; ``experts`` names a subset of the composition (empty: the base alone)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    texts: tuple[ScorableText, ...] = Field(min_length=1, max_length=MAX_TEXTS, repr=False)
    experts: tuple[str, ...] | None = Field(default=None, max_length=1000)


class ProbeRequest(BaseModel):
    """A text to compute logits for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(min_length=1, max_length=20_000, repr=False)


def add_proofs(app: FastAPI, door: Door) -> None:
    """Adds the two routes."""

    async def score(request: Request) -> Response:
        shown, asked = await _admitted(door, request, ScoreRequest)
        answer = await door.hosts.score(shown["base_digest"], shown["name"], asked.texts, asked.experts)
        return JSONResponse(answer.model_dump(mode="json"))

    async def probe(request: Request) -> Response:
        shown, asked = await _admitted(door, request, ProbeRequest)
        answer = await door.hosts.probe(shown["base_digest"], shown["name"], asked.text)
        body = answer.model_dump(mode="json", exclude={"logits"}) | {"base": shown["base_digest"]}
        return JSONResponse(body)

    app.add_api_route(PREFIX + "/deployments/{name}/score", score, methods=["POST"], include_in_schema=False)
    app.add_api_route(PREFIX + "/deployments/{name}/probe", probe, methods=["POST"], include_in_schema=False)


async def _admitted(door: Door, request: Request, kind: Any) -> tuple[dict[str, Any], Any]:
    credential = bearer(request)
    caller = await door.office.identify(credential)
    body = await read_json_object(request, _MAX_BODY_BYTES)
    try:
        asked = kind.model_validate(body)
    except ValidationError as error:
        raise invalid_request(error) from None
    shown = await door.office.call("deployments.show", credential, {"name": request.path_params["name"]})
    if caller.tenant not in {shown["tenant"], PLATFORM_TENANT}:
        raise RoleRequired(
            "Only the deployment's own tenant and the platform's staff may score or probe it.",
            deployment=shown["name"],
        )
    return shown, asked

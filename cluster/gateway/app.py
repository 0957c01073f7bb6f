# SPDX-License-Identifier: Apache-2.0
"""The gateway as one ASGI application, built from an office, hosts and limits.

Pure of Ray: a test gives it any object that keeps the office's protocol. Without a key only ``GET
/healthz`` and the sign-in page (with its style and script) answer; every other address, known or not,
says that a key is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.errors import UnknownOperation
from cluster.gateway.answers import refusal
from cluster.gateway.authzen import add_authzen
from cluster.gateway.console.pages import add_console
from cluster.gateway.console.visit import Console
from cluster.gateway.description import describe
from cluster.gateway.door import Door, DoorLimits
from cluster.gateway.epochs import add_epochs
from cluster.gateway.errors import MalformedBody, WrongMethod
from cluster.gateway.exports import add_exports
from cluster.gateway.hosts import Hosts
from cluster.gateway.management import PREFIX, add_management
from cluster.gateway.openai import add_openai
from cluster.gateway.proofs import add_proofs
from cluster.gateway.sessions import Sessions, bearer
from cluster.gateway.threshold import Threshold, request_id_of
from cluster.office.protocol import OfficeProtocol
from cluster.operations.catalogue import OPERATIONS
from cluster.operations.table import Operation
from model_core.errors import ProductError
from model_core.packing.store import ArtifactStore


def build_app(
    office: OfficeProtocol,
    hosts: Hosts,
    limits: DoorLimits,
    operations: Mapping[str, Operation] = OPERATIONS,
    artifacts: ArtifactStore | None = None,
    sessions: Sessions | None = None,
) -> FastAPI:
    """Builds the gateway.

    Args:
        office: answers everything that is known or decided.
        hosts: generates.
        limits: how much the door takes.
        operations: the table that routes are made of.
        artifacts: where exported bundles are read; None exports nothing.
        sessions: people signed in to the console; None keeps them in this process.
    """
    door = Door(office=office, hosts=hosts, limits=limits, sessions=sessions or Sessions())
    app = FastAPI(
        title="Expert marketplace", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.add_middleware(Threshold)
    console = add_console(app, door, operations)
    app.add_exception_handler(HTTPException, _http_handler(door, console))
    app.add_exception_handler(ProductError, _refuse)
    _add_health(app, door)
    _add_description(app, door, operations)
    add_epochs(app, door, operations)
    add_management(app, door, operations)
    add_authzen(app, door)
    add_openai(app, door)
    add_proofs(app, door)
    add_exports(app, door, artifacts)
    return app


def _add_health(app: FastAPI, door: Door) -> None:
    async def healthz() -> Response:
        try:
            await door.office.health()
        except ProductError:
            return JSONResponse({"status": "unavailable"}, status_code=503, headers={"Retry-After": "1"})
        return JSONResponse({"status": "ok"})

    app.add_api_route("/healthz", healthz, methods=["GET"], include_in_schema=False)


def _add_description(app: FastAPI, door: Door, operations: Mapping[str, Operation]) -> None:
    written: dict[str, Any] = {}

    async def description(request: Request) -> Response:
        await door.office.identify(bearer(request))
        if not written:
            written.update(describe(operations))
        return JSONResponse(written)

    app.add_api_route(f"{PREFIX}/openapi.json", description, methods=["GET"], include_in_schema=False)


async def _refuse(request: Request, error: Exception) -> Response:
    return refusal(error, request.url.path, request_id_of(request))


def _http_handler(door: Door, console: Console) -> Any:
    async def handle(request: Request, error: Exception) -> Response:
        path = request.url.path
        if path.startswith("/console/"):
            return console.refusal(request, _as_refusal(error))
        try:
            # Unknown addresses answer like known ones: a stranger cannot map the routes.
            await door.office.identify(bearer(request))
            raise _as_refusal(error)
        except ProductError as refused:
            return refusal(refused, path, request_id_of(request))

    return handle


def _as_refusal(error: Exception) -> ProductError:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        return UnknownOperation(f"Nothing lives at this address. GET {PREFIX}/openapi.json lists the routes.")
    if status == 405:
        allow = (error.headers or {}).get("Allow", "") if isinstance(error, HTTPException) else ""
        return WrongMethod(f"This address takes {allow or 'another method'}, not this method.", allow=allow)
    return MalformedBody("The request could not be read. Check its form and send it again.")

# SPDX-License-Identifier: Apache-2.0
"""The console's routes: sign in, look, act.

Every page is made on the server and works without JavaScript; htmx only refreshes the live parts. A page
shows what the operations answer to the signed-in person's key and holds no rule of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlencode

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from cluster.errors import UnknownOperation
from cluster.gateway.console.acting import ACTS, Act
from cluster.gateway.console.forms import convert, read_form
from cluster.gateway.console.reading import VIEWS, View
from cluster.gateway.console.receipts import add_receipts
from cluster.gateway.console.render import STATIC_FILES, static_content
from cluster.gateway.console.sending import add_uploads
from cluster.gateway.console.visit import Console
from cluster.gateway.door import Door
from cluster.gateway.errors import MissingKey
from cluster.gateway.sessions import COOKIE, LONGEST_S, check_form, check_same_site, looks_like_key
from cluster.gateway.threshold import log_unexpected, request_id_of
from cluster.operations.table import Operation
from cluster.problems import problem_of
from model_core.errors import ProductError

Handler = Callable[[Request], Awaitable[Response]]


def add_console(app: FastAPI, door: Door, operations: Mapping[str, Operation]) -> Console:
    """Adds the console's routes and answers the console, which also shows refusals."""
    console = Console(door=door, operations=operations)
    for view in VIEWS:
        app.add_api_route(
            view.path, guarded(console, _viewer(console, view)), methods=["GET"], include_in_schema=False
        )
    for act in ACTS:
        app.add_api_route(
            act.path, guarded(console, _actor(console, act)), methods=["POST"], include_in_schema=False
        )
    add_uploads(app, console, guarded)
    add_receipts(app, console, guarded)
    _add_entrance(app, console)
    return console


def guarded(console: Console, handler: Handler) -> Handler:
    """Shows every refusal of a console route as a page."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:
            log_unexpected(error, request_id_of(request))
            return console.refusal(request, error)

    return handle


def _viewer(console: Console, view: View) -> Handler:
    async def handle(request: Request) -> Response:
        visit = console.visit(request)
        values = await view.fetch(visit)
        return console.page(view.template, visit, nav=view.nav, **values)

    return handle


def _actor(console: Console, act: Act) -> Handler:
    async def handle(request: Request) -> Response:
        visit = console.visit(request)
        form = await read_form(request)
        check_form(request, visit.session, form.get("form_token"))
        fields = convert(form, act.converters, act.checkboxes) | dict(request.path_params)
        answer = await visit.call(act.operation, **fields)
        waits = act.note == "approved" and answer.get("state") == "scheduled"
        note = {"note": "scheduled" if waits else act.note}
        if answer.get("snapshot_digest"):
            note["epoch"] = str(answer["epoch"])
        address = act.to.format(
            **{name: answer.get(name, "") for name in ("id", "name")}, **request.path_params
        )
        return RedirectResponse(f"{address}?{urlencode(note)}", status_code=303)

    return handle


def _add_entrance(app: FastAPI, console: Console) -> None:
    async def sign_in_page(request: Request) -> Response:
        return console.sign_in_page(request)

    async def sign_in(request: Request) -> Response:
        check_same_site(request)
        key = (await read_form(request)).get("key", "")
        if not looks_like_key(key):
            raise MissingKey("That is not a key. Paste the whole of it: mk_…")
        caller = await console.door.office.identify(key)
        console.door.sessions.close(request)
        session_id = console.door.sessions.open(
            credential=key, name=caller.name, tenant=caller.tenant, roles=frozenset(caller.roles)
        )
        answer = RedirectResponse("/console/", status_code=303)
        answer.set_cookie(
            COOKIE,
            session_id,
            max_age=LONGEST_S,
            path="/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return answer

    async def sign_out(request: Request) -> Response:
        visit = console.visit(request)
        form = await read_form(request)
        check_form(request, visit.session, form.get("form_token"))
        console.door.sessions.close(request)
        answer = RedirectResponse("/console/sign-in", status_code=303)
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return answer

    async def sign_in_safely(request: Request) -> Response:
        try:
            return await sign_in(request)
        except ProductError as error:
            problem = problem_of(error)
            return console.sign_in_page(request, status=problem.status, sentence=problem.detail)

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC_FILES:
            raise UnknownOperation("There is no such file.")
        headers = {"Cache-Control": "public, max-age=3600"}
        return Response(static_content(name), media_type=STATIC_FILES[name], headers=headers)

    async def root(request: Request) -> Response:
        console.visit(request)
        return RedirectResponse("/console/", status_code=303)

    routes: list[tuple[str, str, Handler]] = [
        ("GET", "/console/sign-in", sign_in_page),
        ("POST", "/console/sign-in", guarded(console, sign_in_safely)),
        ("POST", "/console/sign-out", guarded(console, sign_out)),
        ("GET", "/console/static/{name}", guarded(console, static)),
        ("GET", "/console", guarded(console, root)),
        ("GET", "/", guarded(console, root)),
    ]
    for method, path, handler in routes:
        app.add_api_route(path, handler, methods=[method], include_in_schema=False)

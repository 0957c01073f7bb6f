# SPDX-License-Identifier: Apache-2.0
"""The console's one form with a file: new documents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Message

from cluster.gateway.bodies import check_announced_length, too_large
from cluster.gateway.console.forms import words
from cluster.gateway.console.visit import Console
from cluster.gateway.errors import MalformedBody
from cluster.gateway.management import call_with_parts
from cluster.gateway.sessions import check_form, check_same_site

_PART_BYTES = 1 << 20
_MAX_FIELD_BYTES = 32 * 1024


def add_uploads(app: FastAPI, console: Console, guarded: Callable[..., Any]) -> None:
    """Adds the route that receives documents."""

    async def handle(request: Request) -> Response:
        visit = console.visit(request)
        check_same_site(request)
        operation = console.operations["datasets.upload"]
        await console.door.authorise(visit.session.credential, operation)
        bounded = _bounded(request, console.door.limits.max_upload_bytes + _MAX_FIELD_BYTES)
        async with bounded.form(max_files=1, max_fields=20, max_part_size=_MAX_FIELD_BYTES) as form:
            token = form.get("form_token")
            check_form(request, visit.session, token if isinstance(token, str) else None)
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise MalformedBody("Choose a file of JSON lines.")
            texts = {name: value.strip() for name, value in form.items() if isinstance(value, str)}
            fields: dict[str, Any] = {
                name: text for name, text in texts.items() if text and name != "form_token"
            }
            fields["languages"] = words(texts.get("languages", ""))
            await call_with_parts(
                console.door, operation, visit.session.credential, fields, parts=_parts(file)
            )
        return RedirectResponse("/console/jobs?note=uploaded", status_code=303)

    app.add_api_route(
        "/console/datasets", guarded(console, handle), methods=["POST"], include_in_schema=False
    )


def _bounded(request: Request, max_bytes: int) -> Request:
    """The same request, whose body refuses to grow beyond a bound while it is parsed."""
    check_announced_length(request, max_bytes)
    seen_bytes = 0

    async def receive() -> Message:
        nonlocal seen_bytes
        message = await request.receive()
        seen_bytes += len(message.get("body", b""))
        if seen_bytes > max_bytes:
            raise too_large(max_bytes)
        return message

    return Request(request.scope, receive)


async def _parts(file: UploadFile) -> AsyncIterator[bytes]:
    while part := await file.read(_PART_BYTES):
        yield part

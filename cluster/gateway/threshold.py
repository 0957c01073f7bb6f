# SPDX-License-Identifier: Apache-2.0
"""The outermost layer of the door: every request passes here, and every error ends here.

It adds the headers that make browsers careful, names each request, and turns whatever was raised into an
answer. An unexpected error is logged by its type and its place in the code and never by its text, since
the text may quote a prompt (law 18).
"""

from __future__ import annotations

import logging
import traceback

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.gateway.answers import refusal
from model_core.errors import ProductError
from model_core.packing.ids import new_id

log = logging.getLogger(__name__)

API_POLICY = "default-src 'none'; frame-ancestors 'none'"
CONSOLE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

_ALWAYS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Same-origin, not none: with none browsers send "Origin: null" with our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


class Threshold:
    """ASGI layer around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        path: str = scope["path"]
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = _with_headers(message.get("headers", []), path, request_id)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            log_unexpected(error, request_id)
            if not started:
                answer = refusal(error, path, request_id)
                await answer(scope, receive, send_with_headers)


def log_unexpected(error: BaseException, request_id: str) -> None:
    """Logs an error that is not one of ours: its type and where, never its text or its values."""
    if isinstance(error, ProductError):
        return
    where = [
        f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
    ]
    log.error(
        "request %s failed with %s at %s", request_id, type(error).__qualname__, " < ".join(where[-1:-8:-1])
    )


def request_id_of(request: Request) -> str:
    """The id this layer gave to a request."""
    return str(request.scope["state"]["request_id"])


def _with_headers(
    headers: list[tuple[bytes, bytes]], path: str, request_id: str
) -> list[tuple[bytes, bytes]]:
    given = {name.lower() for name, _ in headers}
    policy = CONSOLE_POLICY if path == "/" or path.startswith("/console") else API_POLICY
    wanted = _ALWAYS | {"content-security-policy": policy, "x-request-id": request_id}
    added = [(name.encode(), value.encode()) for name, value in wanted.items() if name.encode() not in given]
    return [*headers, *added]

# SPDX-License-Identifier: Apache-2.0
"""The management API: one route per row of the table of operations.

A route merges path, query and body into one document and hands it to the office with the caller's key;
the office authenticates, checks the role, validates and runs. The door decides nothing but the form.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.errors import InvalidRequest
from cluster.gateway.bodies import body_stream, read_json_object
from cluster.gateway.door import Door
from cluster.gateway.errors import PreconditionFailed
from cluster.gateway.sessions import bearer
from cluster.gateway.tags import entity_tag, tags_of
from cluster.gateway.uploads import check_file_headers, staged_file
from cluster.operations.table import Operation
from model_core.errors import ProductError

PREFIX = "/api/v1"
_MAX_KEY = 200
_STALE = frozenset({"stale_version", "stale_draft"})


def add_management(app: FastAPI, door: Door, operations: Mapping[str, Operation]) -> None:
    """Adds every operation's route to the application."""
    for operation in operations.values():
        app.add_api_route(
            PREFIX + operation.path,
            _handler(door, operation),
            methods=[operation.method],
            name=operation.name,
            include_in_schema=False,  # the description is written from the table, not from signatures
        )


def _handler(door: Door, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        credential = bearer(request)
        if operation.upload is not None:
            answer = await _call_with_file(door, operation, credential, request)
        else:
            answer = await _call(door, operation, credential, request)
        headers = {"ETag": entity_tag(answer[operation.tag])} if answer.get(operation.tag) else {}
        return JSONResponse(answer, status_code=operation.success_status, headers=headers)

    return handle


async def _call(door: Door, operation: Operation, credential: str, request: Request) -> dict[str, Any]:
    try:
        fields = _query_fields(request)
        if operation.method != "GET":
            fields = merge(fields, await read_json_object(request))
        fields = merge(fields, dict(request.path_params))
        fields = merge(fields, _read_version(operation, request))
        key = idempotency_key(request)
    except Exception:
        # A stranger learns nothing but that a key is needed, not even that the body was malformed.
        await door.office.identify(credential)
        raise
    try:
        return await door.office.call(operation.name, credential, fields, idempotency_key=key)
    except ProductError as error:
        if error.code in _STALE and "if-match" in request.headers:
            raise PreconditionFailed(error.sentence, **error.facts) from None
        raise


async def _call_with_file(
    door: Door, operation: Operation, credential: str, request: Request
) -> dict[str, Any]:
    # Authenticated before the first byte is stored, so that a stranger cannot fill the disk.
    await door.authorise(credential, operation)
    upload = operation.upload
    if upload is None:
        raise InvalidRequest(f"{operation.name} takes no file.")
    fields = merge(_query_fields(request), dict(request.path_params))
    check_file_headers(request, upload.media_type, door.limits.max_upload_bytes)
    return await call_with_parts(door, operation, credential, fields, parts=body_stream(request))


async def call_with_parts(
    door: Door,
    operation: Operation,
    credential: str,
    fields: dict[str, Any],
    *,
    parts: AsyncIterator[bytes],
) -> dict[str, Any]:
    """Stages a file, has it inspected, and calls the operation with it; the staged file never stays.

    Args:
        door: the gateway's wiring.
        operation: one that takes a file.
        credential: of a caller who may call it (``Door.authorise``).
        fields: everything but the file.
        parts: the file's bytes.

    No idempotency key: files are known by their digests, and the same file again is the same thing.
    """
    upload = operation.upload
    if upload is None:
        raise InvalidRequest(f"{operation.name} takes no file.")
    fields = merge(fields, {"upload": None})
    async with staged_file(door.limits.staging, parts, door.limits.max_upload_bytes) as (upload_id, path):
        found = await run_in_threadpool(upload.inspect, path)
        payload = {**fields, "upload": {"id": upload_id, **found}}
        return await door.office.call(operation.name, credential, payload)


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Joins two sources of fields.

    Raises:
        InvalidRequest: both name the same field, so that it is not clear which one is meant.
    """
    if twice := sorted(first.keys() & second.keys()):
        raise InvalidRequest(
            f"The field {twice[0]!r} was given twice, in the address and elsewhere. Give it once.",
            fields=twice,
        )
    return first | second


def _read_version(operation: Operation, request: Request) -> dict[str, Any]:
    """The version that ``If-Match`` names, as a field of the request.

    Raises:
        PreconditionFailed: it names none or several, or the operation takes none.
    """
    header = request.headers.get("if-match")
    if header is None or operation.only_reads:
        return {}
    named = tags_of(header)
    if named is None:
        return {}  # whatever there is
    version = "".join(named) if len(named) == 1 else ""
    if not operation.if_match or not (version.isascii() and version.isdigit() and len(version) < 10):
        raise PreconditionFailed(
            "The If-Match header is no version of this. Send the ETag that came with it, or leave it out."
        )
    return {operation.if_match: int(version)}


def _query_fields(request: Request) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in request.query_params:
        values = request.query_params.getlist(name)
        if any("\x00" in value for value in values):
            raise InvalidRequest(f"The query field {name[:80]!r} holds a zero character. Remove it.")
        fields[name] = values[0] if len(values) == 1 else values
    return fields


def idempotency_key(request: Request) -> str | None:
    """The ``Idempotency-Key`` header, if the caller sent one.

    Raises:
        InvalidRequest: it is empty or too long.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= _MAX_KEY and key.isprintable()):
        raise InvalidRequest(f"The Idempotency-Key header takes 1 to {_MAX_KEY} printable characters.")
    return key

# SPDX-License-Identifier: Apache-2.0
"""Reads request bodies without trusting them: bounded in bytes, in depth and in what JSON may hide.

Python's parser accepts more than JSON allows (NaN, duplicate keys, half surrogates). What slips through
here would surface later as a failed encode or a failed SQL parameter, so it is refused at the door with
a sentence instead.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import ClientDisconnect, Request

from cluster.errors import TooLarge, UnsupportedBody
from cluster.gateway.errors import MalformedBody

MAX_JSON_BYTES = 1 << 20
MAX_DEPTH = 32
_MAX_INTEGER_DIGITS = 40


async def read_bounded(request: Request, max_bytes: int) -> bytes:
    """Reads the whole body, or refuses once it grows beyond ``max_bytes``.

    Raises:
        TooLarge: announced or real length is above the bound.
    """
    check_announced_length(request, max_bytes)
    parts: list[bytes] = []
    size_bytes = 0
    async for part in body_stream(request):
        size_bytes += len(part)
        if size_bytes > max_bytes:
            raise too_large(max_bytes)
        parts.append(part)
    return b"".join(parts)


async def body_stream(request: Request) -> AsyncIterator[bytes]:
    """Yields the body's parts; a caller who hangs up in the middle is a malformed body.

    Raises:
        MalformedBody: the connection closed before the body was complete.
    """
    try:
        async for part in request.stream():
            yield part
    except ClientDisconnect as gone:
        raise MalformedBody(
            "The connection closed before the whole body had arrived. Send it again."
        ) from gone


def check_announced_length(request: Request, max_bytes: int) -> None:
    """Refuses a body whose ``Content-Length`` already says that it is too long.

    Raises:
        TooLarge: the header's number is above the bound.
        MalformedBody: the header is not a number.
    """
    announced = request.headers.get("content-length")
    if announced is None:
        return
    if not announced.isascii() or not announced.isdigit():
        raise MalformedBody("The Content-Length header is not a number. Send the true length.")
    if len(announced) > 15 or int(announced) > max_bytes:
        raise too_large(max_bytes)


def too_large(max_bytes: int) -> TooLarge:
    """The refusal of a body above ``max_bytes``."""
    return TooLarge(
        f"The body is longer than the {max_bytes} bytes this address takes. Send less, or in parts.",
        max_bytes=max_bytes,
    )


async def read_json_object(request: Request, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Reads a JSON object; an absent body is an empty object.

    Raises:
        UnsupportedBody: the body says that it is something else.
        MalformedBody: it is not JSON, not an object, too deep, or hides what JSON does not allow.
        TooLarge: longer than ``max_bytes``.
    """
    raw = await read_bounded(request, max_bytes)
    if not raw:
        return {}
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedBody("This address takes JSON. Set the header Content-Type: application/json.")
    return parse_json_object(raw)


def parse_json_object(raw: bytes) -> dict[str, Any]:
    """Parses strict JSON that must be an object.

    Raises:
        MalformedBody: with the reason, never with the content.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_int=_bounded_int,
        )
    except UnicodeDecodeError as error:
        raise MalformedBody("The body is not UTF-8. Encode it so and send it again.") from error
    except json.JSONDecodeError as error:
        raise MalformedBody(
            f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.",
            line=error.lineno,
            column=error.colno,
        ) from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(value, dict):
        raise MalformedBody("The body is JSON, but not an object. Send one object with the fields by name.")
    _check_value(value, 1)
    return value


def _check_value(value: object, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _too_deep()
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_text(key)
            _check_value(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_value(inner, depth + 1)


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise MalformedBody("A text in the body holds a zero character. Remove it.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise MalformedBody("A text in the body holds half a surrogate pair. Send valid Unicode.") from None


def _too_deep() -> MalformedBody:
    return MalformedBody(f"The body nests deeper than {MAX_DEPTH} levels. Flatten it.", max_depth=MAX_DEPTH)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise MalformedBody("An object in the body names a field twice. Send each field once.")
    return made


def _no_constant(name: str) -> Any:
    raise MalformedBody(f"The body holds {name}, which JSON does not allow. Send a finite number.")


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_INTEGER_DIGITS:
        raise MalformedBody("A number in the body is too long. Send one that fits 64 bits.")
    return int(digits)

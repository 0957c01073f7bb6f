# SPDX-License-Identifier: Apache-2.0
"""Reads the console's forms: texts in, fields of an operation out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

from cluster.errors import InvalidRequest
from cluster.gateway.bodies import read_bounded
from cluster.gateway.errors import MalformedBody

MAX_FORM_BYTES = 64 * 1024
_MAX_FIELDS = 100


async def read_form(request: Request) -> dict[str, str]:
    """Reads a url-encoded form; of a field that is sent twice the last one counts, empty ones are left out.

    Raises:
        MalformedBody: not a form, or too many fields.
        TooLarge: longer than a form of ours can be.
    """
    raw = await read_bounded(request, MAX_FORM_BYTES)
    try:
        pairs = parse_qsl(raw.decode("utf-8"), max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError as error:
        raise MalformedBody("The form could not be read. Reload the page and send it again.") from error
    if any("\x00" in value for _, value in pairs):
        raise MalformedBody("A field of the form holds a zero character. Remove it.")
    return {name: value.strip() for name, value in pairs if value.strip()}


Converter = Callable[[str], Any]


def convert(
    form: Mapping[str, str],
    converters: Mapping[str, tuple[str, Converter]],
    checkboxes: tuple[str, ...],
) -> dict[str, Any]:
    """The fields of an operation from a form.

    Args:
        form: texts by form field.
        converters: form field → (operation field, how to read it).
        checkboxes: fields that are False when they are absent.
    """
    fields: dict[str, Any] = {name: name in form for name in checkboxes}
    for name, text in form.items():
        if name == "form_token" or name in checkboxes:
            continue
        target, reader = converters.get(name, (name, str))
        fields[target] = reader(text)
    return fields


def amount(text: str) -> int:
    """An amount of credits, as micro-credits.

    Raises:
        InvalidRequest: not an amount, or finer than a micro-credit.
    """
    try:
        micro = Decimal(text.replace(",", "")) * 1_000_000
        exact = micro == micro.to_integral_value()
    except (InvalidOperation, OverflowError):
        exact = False
    if not exact:
        raise InvalidRequest(f"{text[:40]!r} is not an amount of credits, such as 12.50.", fields=[])
    return int(micro)


def day(text: str) -> int:
    """A day, as the moment at which it begins in UTC, in microseconds.

    Raises:
        InvalidRequest: not a day.
    """
    try:
        moment = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise InvalidRequest(f"{text[:40]!r} is not a day such as 2026-03-31.", fields=[]) from None
    return int(moment.timestamp()) * 1_000_000


def moment(text: str) -> int:
    """A moment in UTC, in microseconds.

    Raises:
        InvalidRequest: not a moment.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(f"{text[:40]!r} is not a moment such as 2026-03-31T06:00.", fields=[]) from None
    at_utc = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    return int(at_utc.timestamp()) * 1_000_000


def whole(text: str) -> int:
    """A whole number.

    Raises:
        InvalidRequest: not one.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise InvalidRequest(f"{text[:40]!r} is not a whole number.", fields=[])
    return int(text)


def document(text: str) -> Any:
    """A JSON document.

    Raises:
        InvalidRequest: not one.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequest("The edits are not JSON; correct them and save again.", fields=[]) from None


def settings(text: str) -> dict[str, Any]:
    """Lines of ``name = value`` as a recipe; values are numbers, true, false or texts.

    Raises:
        InvalidRequest: a line without an equals sign.
    """
    recipe: dict[str, Any] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name:
            raise InvalidRequest("Write the recipe as lines of name = value.", fields=[])
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        recipe[name] = read if isinstance(read, bool | int | float | str) else value
    return recipe


def words(text: str) -> list[str]:
    """Words separated by commas or spaces."""
    return text.replace(",", " ").split()

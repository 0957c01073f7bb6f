# SPDX-License-Identifier: Apache-2.0
"""Reads what a stranger wrote: bounded in size and depth, text without tricks, references without cycles.

JSON-LD is read as the JSON it is: a name counts by its last part, a value may be bare, an object with
``@id`` or ``@value``, or a list of these. Nothing is fetched, no context is expanded. It does not know what
any name means.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, Final

from policy.cards.errors import CardRefused, CardTooLarge

MAX_DEPTH: Final = 24
MAX_PARTS: Final = 5_000
MAX_TEXT: Final = 10_000

Node = Mapping[str, Any]

# Written right to left, or not seen at all: what a person reads would not be what is imported.
_HIDDEN: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\u2060\ufeff")


def check_document(document: object) -> Node:
    """Refuses a document that is not worth reading.

    Raises:
        CardTooLarge: too deep, too many parts, or a text that is too long.
        CardRefused: not an object, or a text with characters that hide something.
    """
    if not isinstance(document, Mapping):
        raise CardRefused("A card is a JSON object; this is something else.")
    waiting: list[tuple[object, int]] = [(document, 1)]
    parts = 0
    while waiting:
        value, depth = waiting.pop()
        parts += 1
        if depth > MAX_DEPTH or parts > MAX_PARTS:
            raise CardTooLarge(
                f"A card may nest {MAX_DEPTH} levels and hold {MAX_PARTS} parts. Send its terms alone.",
                max_depth=MAX_DEPTH,
                max_parts=MAX_PARTS,
            )
        if isinstance(value, Mapping):
            for key, inner in value.items():
                _check_text(key)
                waiting.append((inner, depth + 1))
        elif isinstance(value, list | tuple):
            waiting.extend((inner, depth + 1) for inner in value)
        elif isinstance(value, str):
            _check_text(value)
    return document


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise CardRefused("The names of a card's fields are texts.")
    if len(text) > MAX_TEXT:
        raise CardTooLarge(f"A text of a card holds at most {MAX_TEXT} characters.", max_text=MAX_TEXT)
    for one in text:
        kind = unicodedata.category(one)
        if one in _HIDDEN or kind == "Cs" or (kind == "Cc" and one not in "\n\r\t"):
            raise CardRefused(
                f"A text of the card holds the hidden character U+{ord(one):04X}. Remove it.",
                character=f"U+{ord(one):04X}",
            )


def nodes_by_id(document: Node) -> dict[str, Node]:
    """The objects of ``@graph`` by their ids."""
    found: dict[str, Node] = {}
    for one in listed(document.get("@graph")):
        if isinstance(one, Mapping) and isinstance(name := one.get("@id"), str):
            found.setdefault(name, one)
    return found


def followed(value: object, known: Mapping[str, Node]) -> object:
    """A value with a bare reference replaced by what it refers to.

    Raises:
        CardRefused: references lead in a circle.
    """
    seen: set[str] = set()
    while isinstance(value, Mapping) and set(value) == {"@id"} and value["@id"] in known:
        name = str(value["@id"])
        if name in seen:
            raise CardRefused("The references of the card lead in a circle.", reference=name[:200])
        seen.add(name)
        value = known[name]
    return value


def field(node: Node, *names: str) -> object:
    """A field by its last part (``license``, ``sc:license``, ``https://schema.org/license``); None if absent.

    Raises:
        CardRefused: two spellings of it say different things.
    """
    found = [value for key, value in node.items() if last_part(key) in names]
    if len(found) > 1 and any(one != found[0] for one in found):
        raise CardRefused(f"The card says {names[0]} twice, in two spellings. Say it once.", field=names[0])
    return found[0] if found else None


def listed(value: object) -> list[Any]:
    """A value as a list: nothing is none, one is one."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def text_of(value: object) -> str | None:
    """The text of a bare value, a reference or a typed value; None for anything else."""
    if isinstance(value, Mapping):
        for name in ("@value", "@id", "uid", "id"):
            if isinstance(value.get(name), str):
                return str(value[name]).strip()
        return None
    return value.strip() if isinstance(value, str) else None


def texts_of(value: object) -> Iterator[str]:
    """The texts of a list of values."""
    for one in listed(value):
        if (text := text_of(one)) is not None:
            yield text


def last_part(name: str) -> str:
    """What a name ends with after its prefix or path."""
    for mark in ("#", "/", ":"):
        name = name.rpartition(mark)[2] if mark in name else name
    return name

# SPDX-License-Identifier: Apache-2.0
"""The one form of a stored row, and its digest.

A row is written as JSON with sorted keys, in ASCII, without what says nothing: a null, and in a column that
knows no null an empty text or a zero. So a column that a later release adds with such a default leaves the
digests of the rows before it as they were. Which columns are left out, and why, stands here alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import LargeBinary, Table
from sqlalchemy.types import Double, Integer

#: Sums that are kept for speed: the verifier adds them up again from usage and reservations instead.
RECOMPUTED: Final[Mapping[str, frozenset[str]]] = {"budgets": frozenset({"spent_micro", "held_micro"})}

#: The seals themselves, which hold by their own chain, what waits to become one, and the notes of triggers on
#: which rows the next publication reads: what it publishes is compared with a reading of every row instead.
UNSEALED: Final = frozenset({"seals", "seal_drafts", "alembic_version", "unpublished"})

#: What names people stays where it can be erased: outside, such a row is its digest, and its salt keeps that
#: from being guessed.
WITHHELD: Final = frozenset({"personal_vault"})

_LEAF: Final = b"\x00"
_GONE: Final = b"\x02"

_write = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False).encode


def row_document(table: Table, values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row is sealed, JSON-able.

    Args:
        table: whose columns.
        values: by column; more than the table's are ignored.
    """
    document: dict[str, Any] = {}
    for name, kind, nullable in _columns(table):
        value = values[name]
        if value is None or (not nullable and not value):
            continue
        if kind is int:
            document[name] = int(value)
        elif kind is float:
            document[name] = float(value)
        elif kind is bytes:
            document[name] = base64.b64encode(value).decode()
        else:
            document[name] = str(value)
    return document


def row_text(table: str, document: Mapping[str, Any]) -> str:
    """The bytes of a row's document, as text."""
    return _write([table, document])


def row_digest(table: str, document: Mapping[str, Any]) -> bytes:
    """SHA-256 over 0x00 and the row's text, 32 bytes."""
    return hashlib.sha256(_LEAF + row_text(table, document).encode()).digest()


def gone_digest(table: str, key: str) -> bytes:
    """What stands for a row that is there no more, 32 bytes."""
    return hashlib.sha256(_GONE + _write([table, key]).encode()).digest()


def key_text(key: tuple[Any, ...]) -> str:
    """A primary key as text; one value stands by itself, several as a JSON list."""
    return str(key[0]) if len(key) == 1 else _write(list(key))


@lru_cache(maxsize=256)
def _columns(table: Table) -> tuple[tuple[str, type, bool], ...]:
    left_out = RECOMPUTED.get(table.name, frozenset())
    return tuple(
        (column.name, _kind(column.type), bool(column.nullable))
        for column in table.columns
        if column.name not in left_out
    )


def _kind(of: Any) -> type:
    if isinstance(of, Integer):
        return int
    if isinstance(of, LargeBinary):
        return bytes
    return float if isinstance(of, Double) else str

# SPDX-License-Identifier: Apache-2.0
"""Draws the tables out of the metadata: ``python tests/architecture/register_diagram.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from policy.tables import APPEND_ONLY, LATCHED
from tenants.accounts.isolation import Isolation
from tenants.accounts.schema import Base

PAGE = Path(__file__).parents[2] / "docs" / "register.md"

_INTRODUCTION = """# The tables

Drawn from the metadata by `python tests/architecture/register_diagram.py`; a test holds this page to it.
Times are microseconds since the Unix epoch, money is micro-credits, documents are canonical JSON in text.
What is append-only, and which columns of a latched row may move, is enforced by triggers on SQLite and
PostgreSQL alike; whose a row is, by row-level security on PostgreSQL and by criteria of every statement on
SQLite ([operations](operations.md)).
"""

_TYPES = {"TEXT": "text", "BIGINT": "int", "DOUBLE": "float", "BLOB": "bytes"}


def draw() -> str:
    """The page: a diagram for each module of tables, and what is promised of every table."""
    rooms: dict[str, list[Any]] = {}
    for row in sorted((one.class_ for one in Base.registry.mappers), key=lambda one: one.__tablename__):
        rooms.setdefault(row.__module__, []).append(row)
    parts = [_INTRODUCTION]
    for module in sorted(rooms):
        lines = [line for row in rooms[module] for line in _lines(row.__table__)]
        parts.append("\n".join([f"## {module}", "", "```mermaid", "erDiagram", *lines, "```", ""]))
        parts.append("\n".join([*_promises(rooms[module]), ""]))
    return "\n".join(parts)


def _lines(table: Any) -> Iterator[str]:
    keys = {name for one in table.foreign_key_constraints for name in one.column_keys}
    yield f"    {table.name} {{"
    for column in table.columns:
        marks = [mark for mark, holds in (("PK", column.primary_key), ("FK", column.name in keys)) if holds]
        kind = _TYPES[str(column.type).split("(")[0].split(" ")[0]]
        yield f"        {kind} {column.name} {', '.join(marks)}".rstrip() + (
            ' "may be missing"' * column.nullable
        )
    yield "    }"
    for key in sorted(
        table.foreign_key_constraints, key=lambda one: (one.referred_table.name, one.column_keys)
    ):
        above = "|o" if any(table.columns[name].nullable for name in key.column_keys) else "||"
        alone = set(key.column_keys) >= {column.name for column in table.primary_key}
        below = "o|" if alone else "o{"
        yield f'    {key.referred_table.name} {above}--{below} {table.name} : "{", ".join(key.column_keys)}"'


def _promises(rows: list[Any]) -> Iterator[str]:
    yield "| Table | What it holds | Whose rows | What may change |"
    yield "|---|---|---|---|"
    for row in rows:
        name = row.__tablename__
        if name in APPEND_ONLY:
            moves = "nothing: append-only"
        elif name in LATCHED:
            moves = "forwards only: " + ", ".join(LATCHED[name])
        else:
            moves = "everything"
        said = " ".join(str(row.__doc__).split())
        yield f"| `{name}` | {said} | {_whose(row.__isolation__)} | {moves} |"


def _whose(isolation: Isolation) -> str:
    words = []
    if isolation.owners:
        words.append("of " + ", ".join(isolation.owners))
    if isolation.parent is not None:
        words.append(f"as `{isolation.parent.__tablename__}`")
    if isolation.readers:
        words.append("read by " + ", ".join(isolation.readers))
    words += [f"read by all where {name} is {value}" for name, value in isolation.open_where.items()]
    if isolation.shared:
        words.append("read by all")
    return "; ".join(words) or "the platform's"


if __name__ == "__main__":
    PAGE.write_text(draw(), encoding="utf-8")

# SPDX-License-Identifier: Apache-2.0
"""Prints an answer: JSON for programs, tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cluster.errors import UnknownField

_WIDEST_CELL = 60
_FIRST = ("id", "name", "slug", "state", "status", "verdict")  # what people look for
_LAST_SHOWN_US = 253_402_300_800_000_000  # the year 10000


def show(document: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints a response document.

    Lists of objects become tables; the other fields become a two-column table above them.
    """
    if as_json:
        click.echo(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False))
        return
    console = Console()
    lists = {name: value for name, value in document.items() if _is_rows(value)}
    single = {
        name: value for name, value in document.items() if name not in lists and value not in (None, [], {})
    }
    if single:
        facts = Table(show_header=False, box=None, pad_edge=False)
        facts.add_column(style="bold")
        facts.add_column(overflow="fold")
        for name, value in single.items():
            facts.add_row(name, _whole(name, value))
        console.print(facts)
    for name, rows in lists.items():
        console.print(_table(name, rows, console.width))
    if not single and not lists:
        console.print("nothing")


def show_field(document: Mapping[str, Any], path: str) -> None:
    """Prints one field, found by a dotted path, without decoration.

    Raises:
        UnknownField: the answer has no such field.
    """
    value: Any = document
    for part in path.split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            raise UnknownField(
                f"The answer has no field {path!r}; it has: {', '.join(sorted(document))}.", field=path
            )
    click.echo(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True))


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _table(title: str, rows: Sequence[Mapping[str, Any]], width: int) -> Table:
    """A table of the columns that fit; programs and the curious use ``--json``."""
    columns = _fitting(rows, width)
    left_out = sum(1 for name in {name for row in rows for name in row} if name not in columns)
    caption = f"{left_out} more fields: --json" if left_out else None
    table = Table(title=title, title_justify="left", header_style="bold", caption=caption)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name == "id")
    for row in rows:
        table.add_row(*(_cell(name, row.get(name)) for name in columns))
    return table


def _fitting(rows: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    chosen: list[str] = []
    used = 1
    for name in dict.fromkeys([*_FIRST, *(name for row in rows for name in row)]):
        values = [row.get(name) for row in rows]
        simple = [value for value in values if value not in (None, "", [], {})]
        if not simple or any(isinstance(value, dict) for value in simple):
            continue
        wanted = max(len(name), *(len(_cell(name, value)) for value in simple)) + 3
        room = min(wanted, 43) if name != "id" else wanted
        if used + room <= width:
            chosen.append(name)
            used += room
    return chosen


def _cell(name: str, value: Any) -> str:
    text = _whole(name, value)
    if text.startswith("sha256:"):
        return text[:19] + "…"
    return text if len(text) <= _WIDEST_CELL else text[: _WIDEST_CELL - 1] + "…"


def _whole(name: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return _number(name, value)
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        return ", ".join(_whole("", part) for part in value)
    return "" if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _number(name: str, value: int) -> str:
    if name.endswith("_micro"):
        return f"{value / 1_000_000:,.6f}"
    if name.endswith("_us") and 0 < value < _LAST_SHOWN_US:
        return datetime.fromtimestamp(value / 1_000_000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
    return str(value)

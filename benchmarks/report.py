# SPDX-License-Identifier: Apache-2.0
"""The rows of a benchmark: written to ``build/bench-NAME.json`` and printed as a table.

A row compares one of our figures with a peer's (or with a bound) of the same run. It holds, fails, or has no
bar and only informs. Knows nothing of what was measured.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BUILD = Path("build")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of a benchmark.

    Attributes:
        name: what was measured, with its shape.
        ours: our figure.
        peer: theirs, or the bound that ours is held against; None if there is none.
        ratio: ours to the peer's, the way round that the bar is stated.
        unit: of ours and the peer's.
        bar: what the ratio (or figure) must reach, as a sentence such as ``">= 1.5"``; None only informs.
        holds: whether it does; None without a bar.
    """

    name: str
    ours: float
    peer: float | None = None
    ratio: float | None = None
    unit: str
    bar: str | None = None
    holds: bool | None = None


def at_least(name: str, ours: float, peer: float, *, unit: str, bar: float) -> Row:
    """A row whose ``ours / peer`` must reach ``bar``."""
    ratio = ours / peer
    return Row(name=name, ours=ours, peer=peer, ratio=ratio, unit=unit, bar=f">= {bar:g}", holds=ratio >= bar)


def at_most(name: str, ours: float, peer: float, *, unit: str, bar: float) -> Row:
    """A row whose ``ours / peer`` must not exceed ``bar``."""
    ratio = ours / peer
    return Row(name=name, ours=ours, peer=peer, ratio=ratio, unit=unit, bar=f"<= {bar:g}", holds=ratio <= bar)


def write_report(
    name: str, rows: Sequence[Row], *, facts: Mapping[str, Any] | None = None, folder: Path = BUILD
) -> Path:
    """Writes ``bench-NAME.json`` with the rows, the machine and further facts; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "name": name,
        "machine": machine(),
        "facts": dict(facts or {}),
        "rows": [asdict(row) for row in rows],
    }
    path = folder / f"bench-{name}.json"
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    draft.replace(path)
    return path


def print_table(title: str, rows: Sequence[Row], console: Console | None = None) -> None:
    """Prints the rows for people."""
    table = Table(title=title, title_justify="left")
    for column in ("what", "ours", "peer", "ratio", "unit", "bar", "holds"):
        table.add_column(column, justify="left" if column in {"what", "unit", "bar"} else "right")
    for row in rows:
        verdict = {True: "yes", False: "NO", None: ""}[row.holds]
        table.add_row(
            row.name,
            _figure(row.ours),
            _figure(row.peer),
            _figure(row.ratio),
            row.unit,
            row.bar or "",
            verdict,
        )
    (console or Console()).print(table)


def all_hold(rows: Sequence[Row]) -> bool:
    """Whether no row with a bar misses it."""
    return all(row.holds is not False for row in rows)


def machine() -> dict[str, Any]:
    """What figures depend on: processor, cores, and the build of torch."""
    import torch

    return {
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

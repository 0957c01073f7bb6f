# SPDX-License-Identifier: Apache-2.0
"""A page of the documentation that rows are written into, between two marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks.report import Row

BEGIN: Final = "<!-- measured: begin -->"
END: Final = "<!-- measured: end -->"


def fill(page: str, measured: str) -> str:
    """A page with what stands between its marks replaced.

    Raises:
        ValueError: a mark is missing.
    """
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"The page needs the marks {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n\n{measured}\n\n{END}{after}"


def table(rows: Sequence[Row], *, peer: str = "peer") -> str:
    """Rows as a table.

    Args:
        rows: in order.
        peer: heading of what our figures are held against.
    """
    lines = [f"| what | ours | {peer} | ratio | unit | bar | holds |", "|---|--:|--:|--:|---|---|---|"]
    for row in rows:
        verdict = {True: "yes", False: "**no**", None: ""}[row.holds]
        figures = " | ".join(_figure(value) for value in (row.ours, row.peer, row.ratio))
        lines.append(f"| {row.name} | {figures} | {row.unit} | {row.bar or ''} | {verdict} |")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

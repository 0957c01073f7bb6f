# SPDX-License-Identifier: Apache-2.0
"""The measured rows as Markdown: ``python -m benchmarks.policy.page``.

Reads ``build/bench-policy.json`` and fills in what stands between the two marks of
``docs/benchmarks/policy.md``; the text around them is written by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import BUILD, Row

PAGE = Path("docs/benchmarks/policy.md")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def markdown(document: Mapping[str, Any]) -> str:
    """The rows as a table, with what they were measured on."""
    return f"{_measured_on(document)}\n\n{_table([Row(**row) for row in document['rows']])}"


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


def main() -> int:
    """Fills in the page; returns 1 if nothing was measured yet."""
    path = BUILD / "bench-policy.json"
    if not path.is_file():
        print(f"There is no {path}; run `make bench-policy` first.", file=sys.stderr)
        return 1
    PAGE.write_text(fill(PAGE.read_text(), markdown(json.loads(path.read_text()))))
    return 0


def _measured_on(document: Mapping[str, Any]) -> str:
    machine, facts = document["machine"], document["facts"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    whole = "" if facts["whole"] else " Not every part was measured."
    return (
        f"One thread of a {machine['processor']} machine with {machine['cores']} cores, Python "
        f"{machine['python']}, {versions}. Load at the end: {facts['load']:.1f}.{whole}"
    )


def _table(rows: Sequence[Row]) -> str:
    lines = [
        "| what | ours | peer or bound | ratio | unit | bar | holds |",
        "|---|--:|--:|--:|---|---|---|",
    ]
    for row in rows:
        verdict = {True: "yes", False: "**no**", None: ""}[row.holds]
        figures = " | ".join(_figure(value) for value in (row.ours, row.peer, row.ratio))
        lines.append(f"| {row.name} | {figures} | {row.unit} | {row.bar or ''} | {verdict} |")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())

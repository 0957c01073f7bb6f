# SPDX-License-Identifier: Apache-2.0
"""The measured rows as Markdown: ``python -m benchmarks.policy.page``.

Reads ``build/bench-policy.json`` and fills in what stands between the two marks of
``docs/benchmarks/policy.md``; the text around them is written by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.marked_page import fill, table
from benchmarks.report import BUILD, Row

PAGE = Path("docs/benchmarks/policy.md")


def markdown(document: Mapping[str, Any]) -> str:
    """The rows as a table, with what they were measured on."""
    rows = [Row(**row) for row in document["rows"]]
    return f"{_measured_on(document)}\n\n{table(rows, peer='peer or bound')}"


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


if __name__ == "__main__":
    sys.exit(main())

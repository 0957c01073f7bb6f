# SPDX-License-Identifier: Apache-2.0
"""Measures the policy service: ``python -m benchmarks.policy`` or ``make bench-policy``.

One thread, one process. Answers are checked against the explaining decision, and Cedar's against ours, before
anything is timed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.policy.deciding import cedar_rows, compile_rows, compose_rows, reasons_rows, replay_rows
from benchmarks.policy.publishing import publish_rows
from benchmarks.report import BUILD, Row, all_hold, print_table, write_report


def _publishing() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="bench-policy-") as folder:
        return publish_rows(Path(folder))


PARTS: dict[str, Callable[[], list[Row]]] = {
    "compose": compose_rows,
    "compile": compile_rows,
    "reasons": reasons_rows,
    "cedar": cedar_rows,
    "replay": replay_rows,
    "publish": _publishing,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policy", description=__doc__)
    parser.add_argument("--only", default="", help=f"a pattern: which of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=BUILD, help="where the rows are written")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    chosen = [name for name in PARTS if re.search(given.only, name)]
    rows: list[Row] = []
    for number, name in enumerate(chosen, start=1):
        print(f"{number} of {len(chosen)}: {name} ...", file=sys.stderr, flush=True)
        found = PARTS[name]()
        print_table("so far", found, Console(stderr=True))
        rows += found
        facts = {
            "whole": len(chosen) == number == len(PARTS),
            "seconds": round(time.monotonic() - began),
            "load": os.getloadavg()[0],
            "versions": {name: importlib.metadata.version(name) for name in ("cedarpy", "numpy", "pydantic")},
        }
        written = write_report("policy", rows, facts=facts, folder=given.out)
    print_table("The policy service", rows)
    print(f"{written}  ({time.monotonic() - began:.0f} s)")
    for row in rows:
        if row.holds is False:
            print(f"missed: {row.name}: {row.ours:.3g} {row.unit}, {row.ratio:.3g} is not {row.bar}")
    return 0 if all_hold(rows) else 1


if __name__ == "__main__":
    sys.exit(main())

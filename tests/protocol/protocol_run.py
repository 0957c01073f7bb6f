# SPDX-License-Identifier: Apache-2.0
"""Searches the protocol within small and large bounds, then its mutants, and prints what was seen."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from protocol_model import World
from protocol_mutants import LARGE, MUTANTS, SMALL
from protocol_search import Found, Search


def main() -> int:
    """Prints a line per search and the shortest trace of each mutant; fails if the law is broken."""
    failures = 0
    for name, bounds in {**SMALL, **LARGE}.items():
        began = time.perf_counter()
        found = Search(World(bounds=bounds)).run()
        failures += bool(found.broken)
        print(f"{name}: {_seen(found, began)}{_trace(found)}", flush=True)
    for mutant in MUTANTS:
        began = time.perf_counter()
        found = Search(World(bounds=mutant.bounds, rules=mutant.rules)).run(only=mutant.breaks)
        failures += not found.broken
        print(f"\nmutant, {mutant.says}: {_seen(found, began)}{_trace(found)}", flush=True)
    return 1 if failures else 0


def _seen(found: Found, began: float) -> str:
    seconds = time.perf_counter() - began
    return f"{found.states:,} states, {found.hosts:,} of one host, {seconds:.1f} s"


def _trace(found: Found) -> str:
    if not found.broken:
        return "; nothing broken"
    lines = "".join(f"\n  {number:2}. {line}" for number, line in enumerate(found.trace, 1))
    return f"\n  broken: {found.broken}{lines}"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())

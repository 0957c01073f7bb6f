# SPDX-License-Identifier: Apache-2.0
"""Measures what merging costs each owner: ``python -m benchmarks.composition`` or ``make bench-composition``.

A public base and one expert an owner are trained for every size and seed; then the composition of all
owners is scored on held-out text under the paper's router rows, a tuned router, and domain gates. Every
trained tensor and every score is kept under ``build/composition``, so a second run only reads them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.composition.page import markdown, plot
from benchmarks.composition.run import describe, run_plan
from benchmarks.composition.settings import LARGE, SMALL, Plan
from benchmarks.composition.tables import report_rows, size_table
from benchmarks.composition.texts import PUBLIC, read_texts
from benchmarks.composition.variants import VARIANTS
from benchmarks.report import BUILD, all_hold, print_table, write_report

INSTALLED_OWNERS = ("python", "cpp", "cloud", "sympy")


def main(arguments: list[str]) -> int:
    """Runs the benchmark; returns 1 if a bar is missed."""
    plan = Plan()
    parser = argparse.ArgumentParser(prog="benchmarks.composition", description=__doc__)
    parser.add_argument(
        "--data", type=Path, help="folder of <domain>.jsonl.zst; else this installation's text"
    )
    parser.add_argument("--owners", nargs="+", help="private domains")
    parser.add_argument("--sizes", nargs="+", choices=[SMALL.name, LARGE.name], help="model sizes")
    parser.add_argument("--seeds", nargs="+", type=int, default=plan.seeds)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=BUILD, help="where results are kept")
    chosen = parser.parse_args(arguments)
    folder = chosen.data if chosen.data and (chosen.data / f"{PUBLIC}.jsonl.zst").is_file() else None
    if folder is None:
        print("There is no folder of texts; the domains that every installation carries are used.")
    owners = tuple(chosen.owners or (plan.owners if folder else INSTALLED_OWNERS))
    sizes = tuple(size for size in plan.sizes if not chosen.sizes or size.name in chosen.sizes)
    plan = replace(plan, owners=owners, sizes=sizes, seeds=tuple(chosen.seeds))
    began = time.monotonic()
    root = chosen.out / "composition"
    root.mkdir(parents=True, exist_ok=True)
    texts = read_texts(folder, plan.owners, plan.amounts)
    scores = run_plan(plan, texts, root, processes=chosen.processes)
    tables = [
        size_table(size.name, [scores[size.name, seed] for seed in plan.seeds], plan.owners, VARIANTS)
        for size in plan.sizes
    ]
    rows = [row for table in tables for row in report_rows(table)]
    facts = {
        "plan": asdict(plan),
        "sizes": {size.name: describe(size) for size in plan.sizes},
        "texts": texts.digest,
        "works": {name: len(texts.report[name]) for name in (*plan.owners, PUBLIC)},
        "closed": {
            table.size: {name: asdict(found) for name, found in table.closed.items()} for table in tables
        },
        "took_s": round(time.monotonic() - began),
    }
    written = write_report("composition", rows, facts=facts, folder=chosen.out)
    (root / "tables.md").write_text(markdown(tables))
    plot(tables, root / "gap.svg")
    print_table("What merging costs each owner", rows)
    print(f"Rows: {written}. Tables: {root / 'tables.md'}. Picture: {root / 'gap.svg'}.")
    return 0 if all_hold(rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

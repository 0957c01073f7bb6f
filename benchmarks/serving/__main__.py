# SPDX-License-Identifier: Apache-2.0
"""Measures serving against Hugging Face and llama.cpp: ``python -m benchmarks.serving``.

All sides hold the same weights in the same format and take turns, round by round, in this process. Every
result is kept under ``build/bench-serving``; ``--resume`` takes those that are there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from benchmarks.report import BUILD, Row, all_hold, machine, print_table, write_report
from benchmarks.serving.arithmetic import Arithmetic, choose
from benchmarks.serving.case import LARGER, SMALL
from benchmarks.serving.kept import Kept, source_digest
from benchmarks.serving.llama import why_missing
from benchmarks.serving.measured import LLAMA
from benchmarks.serving.plan import full_jobs, quick_jobs
from benchmarks.serving.run import Runner

_PEERS = ("transformers", "llama_cpp_python", "gguf")
_FOLDER = BUILD / "bench-serving"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the whole matrix, hours")
    parser.add_argument("--resume", action="store_true", help="take results that an earlier run has kept")
    parser.add_argument("--kept", action="store_true", help="only rows of kept results; measure nothing")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every side")
    parser.add_argument("--torch", action="store_true", help="no compiled kernels")
    parser.add_argument("--only", default="", help="a pattern: only jobs whose label it is found in")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    began = time.monotonic()
    arithmetic = choose(_FOLDER / "kernels", threads=given.threads, torch_only=given.torch)
    print(f"Our side computes with {arithmetic.said}.", file=sys.stderr)
    missing = _missing()
    context = {"machine": machine(), "versions": _versions(), "native": arithmetic.native}
    kept = Kept(_FOLDER, context | {"threads": given.threads, "source": source_digest()})
    runner = Runner(
        kept,
        arithmetic=arithmetic,
        threads=given.threads,
        resume=given.resume or given.kept,
        missing=frozenset(missing),
    )
    planned = full_jobs() if given.full else quick_jobs()
    jobs = [job for job in planned if re.search(given.only, job.label)]
    if given.kept:
        jobs = [job for job in jobs if runner.has(job)]
    rows: list[Row] = _compile_rows(arithmetic)
    try:
        for number, job in enumerate(jobs, start=1):
            print(f"{number} of {len(jobs)}: {job.label} ...", file=sys.stderr, flush=True)
            found = runner.rows(job)
            rows += found
            print_table("so far", found, Console(stderr=True))
            whole = number == len(planned)
            write_report("serving", rows, facts=_facts(given, arithmetic, missing, began, whole=whole))
    finally:
        runner.close()
    print_table("Serving", rows)
    print(f"{BUILD / 'bench-serving.json'}  ({time.monotonic() - began:.0f} s)")
    for row in rows:
        if row.holds is False:
            figure = row.ours if row.ratio is None else row.ratio
            print(f"missed: {row.name}: {figure:.3g} is not {row.bar}")
    return 0 if all_hold(rows) else 1


def _compile_rows(arithmetic: Arithmetic) -> list[Row]:
    if arithmetic.compile_s is None:
        return []
    return [Row(name="compiling the kernels, once a machine", ours=arithmetic.compile_s, unit="s")]


def _missing() -> dict[str, str]:
    """Peers that cannot take part here, and why."""
    why = why_missing()
    if why is None:
        return {}
    print(why, file=sys.stderr)
    return {LLAMA: why}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _facts(
    given: argparse.Namespace, arithmetic: Arithmetic, missing: dict[str, str], began: float, *, whole: bool
) -> dict[str, Any]:
    return {
        "whole": whole,
        "full": given.full,
        "seconds": round(time.monotonic() - began),
        "threads": given.threads,
        "arithmetic": arithmetic.said,
        "load": os.getloadavg()[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": _versions(),
        "missing": missing,
        "parameters": {sizes.name: sizes.parameters for sizes in (SMALL, LARGER)},
    }


if __name__ == "__main__":
    sys.exit(main())

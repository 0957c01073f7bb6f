# SPDX-License-Identifier: Apache-2.0
"""Measures expert training against Hugging Face Trainer: ``python -m benchmarks.training``.

Tokens per second in fp32 and bf16 at two sizes, both sides taking turns step by step in one process; the
share of the peak; peak memory of a fresh process each; and what a token costs as the model grows.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial

import torch
from rich.console import Console

from benchmarks.report import Row, all_hold, at_least, at_most, print_table, write_report
from benchmarks.training.case import LARGER, STARTER, Case, Format
from benchmarks.training.memory import peak_bytes
from benchmarks.training.peak import PeakMeter
from benchmarks.training.sides import ExpertsPath, train_ours, train_theirs
from benchmarks.training.turns import interleave

_MIB = 2**20
_FORMATS: tuple[Format, ...] = ("fp32", "bf16")


def speed_rows(case: Case, *, steps: int, threads: int, warm_up: int = 2) -> list[Row]:
    """Tokens per second of both sides, and our share of the peak."""
    meter = PeakMeter(case, threads=threads)
    meter.measure()
    taken = interleave(
        {
            "ours": partial(train_ours, case),
            "theirs": partial(train_theirs, case, experts=faster_path(case, threads=threads)),
        },
        steps=steps,
        warm_up=warm_up,
        threads=threads,
    )
    meter.measure()
    peak = meter.peak()
    ours, theirs = (case.step_tokens / statistics.median(taken[side]) for side in ("ours", "theirs"))
    # Best against best: the peak is the best of many tries too.
    share = peak.seconds / min(taken["ours"])
    name = f"expert training, {case.label}"
    if case.number_format == "fp32":
        first = Row(
            name=name,
            ours=ours,
            peer=theirs,
            ratio=ours / theirs,
            unit="tokens/s",
            bar=">= 1.5, or >= 75 % of peak",
            holds=ours >= 1.5 * theirs or share >= 0.75,
        )
    else:
        first = at_least(name, ours, theirs, unit="tokens/s", bar=1.2)
    best = peak.flops / min(taken["ours"])
    shown = Row(
        name=f"share of peak, {case.label}",
        ours=best / 1e9,
        peer=peak.flops / peak.seconds / 1e9,
        ratio=share,
        unit="GFLOP/s",
    )
    return [first, shown]


def faster_path(case: Case, *, threads: int) -> ExpertsPath:
    """Which of transformers' implementations of experts is faster here, at a small depth."""
    shallow = case.with_sizes(layers=min(2, case.layers), vocabulary=min(1024, case.vocabulary))
    paths: tuple[ExpertsPath, ...] = ("eager", "grouped_mm")
    taken = interleave(
        {path: partial(train_theirs, shallow, experts=path) for path in paths},
        steps=1,
        warm_up=1,
        threads=threads,
    )
    return min(paths, key=lambda path: taken[path])


def memory_row(case: Case, *, threads: int) -> Row:
    """Growth of a fresh process of each side."""
    ours, theirs = (peak_bytes(side, case, threads=threads) / _MIB for side in ("ours", "theirs"))
    return at_most(f"peak memory, {case.label}", ours, theirs, unit="MiB", bar=1.0)


def scaling_rows(*, steps: int, threads: int) -> list[Row]:
    """What a token costs us as layers, width and positions grow (fp32, 1024 tokens a step)."""
    small = STARTER.with_sizes(name="scaling", layers=2, width=128, inner=384, heads=2, rows=2)
    axes: dict[str, list[tuple[int, Case]]] = {
        "layers": [(layers, small.with_sizes(layers=layers)) for layers in (2, 4, 8)],
        "width": [
            (width, small.with_sizes(width=width, inner=3 * width, heads=width // 64))
            for width in (128, 256, 512)
        ],
        "positions": [
            (positions, small.with_sizes(positions=positions, rows=1024 // positions))
            for positions in (256, 512, 1024)
        ],
    }
    rows = []
    for axis, cases in axes.items():
        first: float | None = None
        for size, case in cases:
            taken = interleave({"ours": partial(train_ours, case)}, steps=steps, warm_up=1, threads=threads)
            cost = statistics.median(taken["ours"]) / case.step_tokens * 1e6
            first = first or cost
            rows.append(
                Row(name=f"a token at {size} {axis}", ours=cost, peer=first, ratio=cost / first, unit="us")
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of torch; with 1 (the default) steps are timed by processor time, which other work on "
        "the machine does not lengthen, with more by the wall clock",
    )
    parser.add_argument("--steps", type=int, default=4, help="measured steps of each side")
    parser.add_argument("--without-larger", action="store_true", help="the starter's shape alone")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    began = time.monotonic()
    rows: list[Row] = []
    for case in (STARTER,) if given.without_larger else (STARTER, LARGER):
        steps = given.steps if case is STARTER else max(2, given.steps // 2)
        for number_format in _FORMATS:
            print(f"{case.name}, {number_format} ...", file=sys.stderr, flush=True)
            measured = case.in_format(number_format)
            warm_up = 2 if case is STARTER else 1
            rows += speed_rows(measured, steps=steps, threads=given.threads, warm_up=warm_up)
            rows.append(memory_row(measured, threads=given.threads))
            print_table("so far", rows[-3:], Console(stderr=True))
    print("scaling ...", file=sys.stderr, flush=True)
    rows += scaling_rows(steps=2, threads=given.threads)
    import transformers

    facts = {
        "seconds": round(time.monotonic() - began),
        "threads": given.threads,
        "clock": "processor time of the thread" if given.threads == 1 else "wall clock",
        "load": os.getloadavg()[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "parameters": {case.name: case.parameters for case in (STARTER, LARGER)},
    }
    path = write_report("training", rows, facts=facts)
    print_table("Expert training", rows)
    print(f"{path}  ({facts['seconds']} s, load {facts['load']:.1f})")
    return 0 if all_hold(rows) else 1


if __name__ == "__main__":
    sys.exit(main())

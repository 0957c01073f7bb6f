# SPDX-License-Identifier: Apache-2.0
"""Measures the compiled products alone, against torch: ``python -m benchmarks.serving.kernels``.

Many rows: billions of operations per second against torch's product of the same shape, both sides taking
turns. Few rows, with matrices that no cache holds: bytes of weights per second against what torch reads when
it adds up the same memory. The best of all turns counts, since whatever else runs only ever slows one down.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.report import Row, all_hold, at_least, print_table, write_report
from model_core.engine.native.compiler import NoLibrary
from model_core.engine.native.library import Pool, load_library
from model_core.engine.native.panels import KINDS, Packed, PanelKind, pack_matrix
from model_core.engine.native.short import shorten

# Rows, inputs, outputs.
_PRODUCTS = (
    (1024, 512, 512),
    (1024, 512, 1536),
    (256, 512, 1408),
    (256, 1408, 512),
    (1024, 2048, 2048),
    (37, 512, 1408),
)
_FEW_ROWS = (1, 2, 4, 8)
_FEW_SHAPES = ((512, 1408), (1408, 512))
# Few rows of a step, more of a batch, many of a prompt.
_SHORT_ROWS = (1, 2, 4, 8, 14, 32, 256)
_SHORT_SHAPES = ((512, 1408), (1408, 512), (1024, 2816))
_READ_BYTES = 96 << 20
_BARS = {"f32": 0.85, "bf16": 0.6, "i8": None}
_READ_BARS = {"f32": 0.8, "bf16": 0.8, "i8": None}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the rows and writes them to ``build/bench-kernels.json``; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--folder", type=Path, default=Path("build/kernels"))
    chosen = parser.parse_args(arguments)
    console = Console()
    library = load_library(chosen.folder)
    if isinstance(library, NoLibrary):
        console.print(library.reason)
        return 1
    torch.set_num_threads(chosen.threads)
    pool = Pool(library, chosen.threads)
    rows = [product_row(pool, kind, *shape, rounds=chosen.rounds) for kind in KINDS for shape in _PRODUCTS]
    for kind in KINDS:
        for shape in _FEW_SHAPES:
            rows += reading_rows(pool, kind, *shape, rounds=chosen.rounds)
    for kind in KINDS:
        if kind != "i8" and library.short_pays(kind):
            for shape in _SHORT_SHAPES:
                rows += short_rows(pool, kind, *shape, rounds=chosen.rounds)
    pool.close()
    facts = {
        "threads": chosen.threads,
        "compiler": library.built.compiler,
        "compile_s": library.built.compile_s,
    }
    write_report("kernels", rows, facts=facts)
    print_table(f"compiled products, {chosen.threads} threads", rows, console)
    return 0 if all_hold(rows) else 1


def product_row(pool: Pool, kind: PanelKind, rows: int, n_in: int, n_out: int, *, rounds: int) -> Row:
    """A product of many rows against torch's; integers against torch's product of the widened matrix."""
    matrix, weight_OI = _matrix(kind, n_out, n_in)
    x_RI, y_RO = torch.randn(rows, n_in), torch.empty(rows, n_out)
    rounded_RI = x_RI.to(weight_OI.dtype)
    ours_s, theirs_s = _best(
        [
            lambda: pool.multiply(matrix, x_RI, y_RO),
            lambda: torch.nn.functional.linear(rounded_RI, weight_OI),
        ],
        rounds,
    )
    gflop = 2e-9 * rows * n_in * n_out
    name = f"{kind} {rows} x {n_in} x {n_out}"
    return _row(name, gflop / ours_s, gflop / theirs_s, "GF/s", _BARS[kind])


def reading_rows(pool: Pool, kind: PanelKind, n_in: int, n_out: int, *, rounds: int) -> list[Row]:
    """Products of few rows with matrices beyond the caches, against torch's sum over the same memory."""
    count = _READ_BYTES // _matrix(kind, n_out, n_in)[0].data.nbytes
    matrices = [_matrix(kind, n_out, n_in)[0] for _ in range(count)]
    gigabytes = sum(matrix.data.nbytes for matrix in matrices) / 1e9
    found = []
    for rows in _FEW_ROWS:
        x_RI, y_RO = torch.randn(rows, n_in), torch.empty(rows, n_out)

        sides = [_turns(pool, matrix, x_RI, y_RO) for matrix in matrices]
        best_s = [[float("inf"), float("inf")] for _ in matrices]
        # Each matrix is timed alone, again only after all others have passed through the caches.
        for _ in range(max(5, rounds // 3)):
            for which in (0, 1):
                for place, side in enumerate(sides):
                    best_s[place][which] = min(best_s[place][which], _seconds(side[which]))
        ours_s, theirs_s = (sum(one[which] for one in best_s) for which in (0, 1))
        name = f"{kind} {rows} x {n_in} x {n_out}, from memory"
        bar = _READ_BARS[kind] if rows == 1 else None
        found.append(_row(name, gigabytes / ours_s, gigabytes / theirs_s, "GB/s", bar))
    return found


def short_rows(pool: Pool, kind: PanelKind, n_in: int, n_out: int, *, rounds: int) -> list[Row]:
    """Products with short exponents against products with the same weights whole, out of memory."""
    count = 2 * _READ_BYTES // _matrix(kind, n_out, n_in)[0].data.nbytes
    whole, short = [], []
    for _ in range(count):
        matrix, weight_OI = _matrix(kind, n_out, n_in)
        shorter = shorten(weight_OI, pool.library)
        if shorter is None:
            raise RuntimeError("Random weights have few exponents, and these were too many.")
        whole.append(matrix)
        short.append(shorter)
    gigabytes = sum(matrix.data.nbytes for matrix in whole) / 1e9
    found = []
    for rows in _SHORT_ROWS:
        x_RI, y_RO = torch.randn(rows, n_in), torch.empty(rows, n_out)
        sides = [(which, matrices) for which, matrices in enumerate((short, whole))]
        taken_s: tuple[list[float], list[float]] = ([], [])
        for _ in range(max(5, rounds // 3)):
            random.shuffle(sides)
            for which, matrices in sides:
                began_s = time.perf_counter()
                for matrix in matrices:
                    pool.multiply(matrix, x_RI, y_RO)
                taken_s[which].append(time.perf_counter() - began_s)
        ours, theirs = (gigabytes / statistics.median(times) for times in taken_s)
        name = f"{kind} {rows} x {n_in} x {n_out}, short exponents against whole weights"
        found.append(Row(name=name, ours=ours, peer=theirs, ratio=ours / theirs, unit="GB/s"))
    return found


def _row(name: str, ours: float, theirs: float, unit: str, bar: float | None) -> Row:
    if bar is None:
        return Row(name=name, ours=ours, peer=theirs, ratio=ours / theirs, unit=unit)
    return at_least(name, ours, theirs, unit=unit, bar=bar)


def _matrix(kind: PanelKind, n_out: int, n_in: int) -> tuple[Packed, Tensor]:
    weight_OI = torch.randn(n_out, n_in)
    if kind == "i8":
        integers_OI = (weight_OI * 30).clamp(-127, 127).to(torch.int8)
        return pack_matrix(integers_OI, scales_O=torch.ones(n_out)), integers_OI.float()
    matrix = pack_matrix(weight_OI, kind=kind)
    return matrix, weight_OI.to(matrix.data.dtype)


def _turns(pool: Pool, matrix: Packed, x_RI: Tensor, y_RO: Tensor) -> list[Callable[[], object]]:
    """Our product with a matrix, and torch's sum over the same memory."""
    flat = matrix.data.view(torch.float32)
    return [lambda: pool.multiply(matrix, x_RI, y_RO), flat.sum]


def _best(sides: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Seconds of each side at its best, taking turns."""
    best_s = [float("inf")] * len(sides)
    for _ in range(rounds):
        for place, side in enumerate(sides):
            best_s[place] = min(best_s[place], _seconds(side))
    return best_s


def _seconds(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


if __name__ == "__main__":
    sys.exit(main())

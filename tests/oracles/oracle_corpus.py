# SPDX-License-Identifier: Apache-2.0
"""Worlds frozen into files, with what is true in them: they stay when the generator of worlds changes.

``corpus/chosen.json`` holds worlds of the generator that between them show every reason and every way in
which gates fail together; any other file holds a world on which evaluators once disagreed. Facts are written
without the fields that have their default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oracle_product
import oracle_spec
from oracle_answers import Answer, Case, Json
from oracle_compare import Asked

from policy.deciding.composition import compose
from policy.deciding.questions import Question
from policy.facts.snapshot import Snapshot

CORPUS = Path(__file__).resolve().parent / "corpus"


def frozen(folder: Path = CORPUS) -> Iterator[tuple[Asked, Json]]:
    """All frozen worlds with what was written down about them."""
    for path in sorted(folder.glob("*.json")):
        for entry in json.loads(path.read_text(encoding="utf-8")):
            snapshot = Snapshot.model_validate(entry["world"])
            name = f"{path.stem}: {entry['name']}"
            yield Asked(name, snapshot, Question(deployment="lab", at_us=entry["at_us"])), entry


def freeze(path: Path, asked: list[Asked]) -> None:
    """Writes worlds to a file, with what the specification says about each."""
    lines = [json.dumps(_entry(one), sort_keys=True, separators=(",", ":")) for one in asked]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def _entry(asked: Asked) -> Json:
    case = Case(asked.snapshot.model_dump(mode="json"), asked.question.at_us)
    return {
        "name": asked.name,
        "at_us": case.at_us,
        "world": _plain(asked.snapshot),
        "answer": written(specified(case)),
        "because": oracle_product.because(compose(asked.snapshot, asked.question)),
    }


def _plain(snapshot: Snapshot) -> Json:
    plain: Json = snapshot.model_dump(mode="json", exclude_defaults=True)
    return plain


def specified(case: Case) -> Answer:
    """What the specification says."""
    return oracle_spec.answer(
        case.world, oracle_spec.compose(case.world, "lab", oracle_spec.judge(case.world, "lab", case.at_us))
    )


def written(answer: Answer) -> Json:
    """An answer as it is written down."""
    return {
        "experts": [[one.bundle, one.outcome, sorted(one.gates), one.ends_us] for one in answer.experts],
        "members": list(answer.members),
        "dropped": list(answer.dropped),
        "denied": answer.denied,
        "ends_us": answer.ends_us,
    }


def chosen(worlds: Iterator[Asked], times: int = 2) -> list[Asked]:
    """Of many worlds those that show something not yet shown so many times."""
    shown: dict[Any, int] = {}
    kept = []
    for asked in worlds:
        new = [one for one in _shows(asked) if shown.get(one, 0) < times]
        if new:
            kept.append(asked)
            for one in new:
                shown[one] = shown.get(one, 0) + 1
    return kept


def _shows(asked: Asked) -> set[Any]:
    said = compose(asked.snapshot, asked.question)
    codes = {reason.code for one in said.decisions for reason in one.reasons}
    together = {
        frozenset(r.gate for r in one.reasons if not r.code.endswith(("permits", "holds")))
        for one in said.decisions
    }
    how = (len(said.members), len(said.dropped), said.verdict, said.valid_until_us is None)
    branch = {
        ("chosen", choice.expression, choice.chosen) for one in said.decisions for choice in one.licenses
    }
    return {*codes, *together, how, *branch}

# SPDX-License-Identifier: Apache-2.0
"""Scores the models of one cell on held-out passages and keeps the scores, so that a rerun only reads them.

Models are the base, each owner's own two-expert model as it was trained, and the composition of all owners
under every variant. Knows no figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.composition import stages
from benchmarks.composition.figures import BASE, OWN
from benchmarks.composition.stages import Cell
from benchmarks.composition.texts import PUBLIC
from benchmarks.composition.variants import Trained, compose
from model_core.evaluation.bits import DocumentBits, bits_per_document
from model_core.network.expert import Expert
from model_core.text.documents import Document

# Model to domain to scores.
Scores = dict[str, dict[str, tuple[DocumentBits, ...]]]


def score_cell(
    cell: Cell,
    trained: Trained,
    passages: Mapping[str, Sequence[Document]],
    variants: Sequence[str],
    say: Callable[[str], None] = lambda _line: None,
) -> Scores:
    """Scores every model on every domain that it is asked about.

    Args:
        cell: whose models.
        trained: they themselves.
        passages: domain to held-out text.
        variants: ways of composing.
        say: told what is scored next.
    """
    found: Scores = {}
    for model in (BASE, OWN, *variants):
        path = stages.scores_path(cell, model)
        if not path.exists():
            say(model)
            _write(path, _score_model(model, cell, trained, passages))
        found[model] = _read(path)
    # The public text has no owner; its reference is the base, so that every domain has one.
    found[OWN][PUBLIC] = found[BASE][PUBLIC]
    return found


def kept_scores(cell: Cell, models: Sequence[str]) -> bool:
    """Whether an earlier run has scored all of these models."""
    return all(stages.scores_path(cell, model).exists() for model in models)


def _score_model(
    model: str, cell: Cell, trained: Trained, passages: Mapping[str, Sequence[Document]]
) -> dict[str, tuple[DocumentBits, ...]]:
    def score(domain: str, experts: Sequence[Expert], top_k: int) -> tuple[DocumentBits, ...]:
        return bits_per_document(
            trained.decoder,
            passages[domain],
            stages.tokenizer(cell),
            experts=experts,
            top_k=top_k,
            window_tokens=cell.plan.amounts.max_positions,
        )

    if model == BASE:
        return {domain: score(domain, (), 1) for domain in passages}
    if model == OWN:
        return {owner: score(owner, (trained.experts[owner],), 2) for owner in cell.plan.owners}
    experts = compose(model, cell, trained)
    together = [experts[owner] for owner in cell.plan.owners]
    return {domain: score(domain, together, cell.plan.top_k) for domain in passages}


def _write(path: Path, scores: Mapping[str, Sequence[DocumentBits]]) -> None:
    document = {domain: [asdict(item) for item in items] for domain, items in scores.items()}
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(document))
    draft.replace(path)


def _read(path: Path) -> dict[str, tuple[DocumentBits, ...]]:
    document = json.loads(path.read_text())
    return {domain: tuple(DocumentBits(**item) for item in items) for domain, items in document.items()}

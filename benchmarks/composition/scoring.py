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

    def score(domain: str, experts: Sequence[Expert], top_k: int) -> tuple[DocumentBits, ...]:
        return bits_per_document(
            trained.decoder,
            passages[domain],
            stages.tokenizer(cell),
            experts=experts,
            top_k=top_k,
            window_tokens=cell.plan.amounts.max_positions,
        )

    say("base")
    found: Scores = {BASE: {domain: score(domain, (), 1) for domain in passages}}
    say("own models")
    found[OWN] = {owner: score(owner, (trained.experts[owner],), 2) for owner in cell.plan.owners}
    # The public text has no owner; its reference is the base, so that every domain has one.
    found[OWN][PUBLIC] = found[BASE][PUBLIC]
    for variant in variants:
        say(variant)
        experts = compose(variant, cell, trained)
        together = [experts[owner] for owner in cell.plan.owners]
        found[variant] = {domain: score(domain, together, cell.plan.top_k) for domain in passages}
    return found


def write_scores(path: Path, scores: Scores) -> None:
    """Keeps scores as JSON."""
    document = {
        model: {domain: [asdict(item) for item in items] for domain, items in by_domain.items()}
        for model, by_domain in scores.items()
    }
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(document))
    draft.replace(path)


def read_scores(path: Path) -> Scores:
    """Reads what ``write_scores`` kept."""
    document = json.loads(path.read_text())
    return {
        model: {domain: tuple(DocumentBits(**item) for item in items) for domain, items in by_domain.items()}
        for model, by_domain in document.items()
    }

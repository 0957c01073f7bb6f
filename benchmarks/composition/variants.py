# SPDX-License-Identifier: Apache-2.0
"""The ways of composing the same trained experts that are compared.

*Rows* are the paper's: router rows learned beside the experts, nothing else. *Tuned* trains all rows
together on public documents that resemble each owner's; it must be redone after every removal. *Gates* are
the product's default: gates and calibration fitted by each owner alone. Knows nothing of scores.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.composition import stages
from benchmarks.composition.stages import Cell
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.packing.canonical import digest_bytes
from model_core.training.finishing import gate_expert
from model_core.training.proxies import ProxySettings, select_proxies
from model_core.training.tuning import RouterRecipe, apply_tuned, tune_router

ROWS, TUNED, GATES = "rows", "tuned", "gates"
VARIANTS = (ROWS, TUNED, GATES)
TITLES = {
    ROWS: "router rows of the paper",
    TUNED: "router tuned on public proxies",
    GATES: "domain gates (default)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What a cell has trained.

    Attributes:
        decoder: its base.
        experts: owner to expert, without gates.
    """

    decoder: Decoder
    experts: Mapping[str, Expert]


def compose(variant: str, cell: Cell, trained: Trained) -> dict[str, Expert]:
    """Experts of all owners as a variant puts them side by side.

    Raises:
        KeyError: there is no such variant.
    """
    make: Mapping[str, Callable[[Cell, Trained], dict[str, Expert]]] = {
        ROWS: _rows,
        TUNED: _tuned,
        GATES: _gates,
    }
    return make[variant](cell, trained)


def _rows(_cell: Cell, trained: Trained) -> dict[str, Expert]:
    return dict(trained.experts)


def _gates(cell: Cell, trained: Trained) -> dict[str, Expert]:
    recipe = cell.plan.expert_recipe(cell.size)
    gated = {}
    for owner, expert in trained.experts.items():
        gated[owner] = copy.deepcopy(expert)
        gate_expert(
            trained.decoder,
            stages.tokenizer(cell),
            gated[owner],
            cell.texts.owners[owner],
            cell.texts.calibration,
            recipe,
        )
    return gated


def _tuned(cell: Cell, trained: Trained) -> dict[str, Expert]:
    """Proxies are picked among the base's own training text, and never used for any figure."""
    settings = ProxySettings(count=min(cell.plan.proxies, len(cell.texts.base) // 2))
    members = {_member(owner): owner for owner in trained.experts}
    proxies = {
        member: select_proxies(cell.texts.owners[owner], cell.texts.base, settings=settings).documents
        for member, owner in members.items()
    }
    recipe = RouterRecipe(
        steps=cell.plan.tuning_steps,
        batch_rows=cell.plan.amounts.batch_rows,
        sequence_tokens=cell.plan.amounts.sequence_tokens,
    )
    experts = {member: trained.experts[owner] for member, owner in members.items()}
    tuned = tune_router(
        trained.decoder,
        experts,
        proxies,
        cell.texts.calibration,
        stages.tokenizer(cell),
        recipe,
        cell.seed,
        base_digest=_member("base"),
    )
    return {members[member]: expert for member, expert in apply_tuned(experts, tuned).items()}


def _member(name: str) -> str:
    """A digest that stands for a bundle which the benchmark never seals."""
    return digest_bytes(name.encode())

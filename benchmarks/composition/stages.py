# SPDX-License-Identifier: Apache-2.0
"""Trains what the benchmark scores, one file a result, and trains nothing twice.

A result lies under ``<root>/<size>/<seed>/`` and its name carries a digest of everything it was made from,
so a changed setting makes a new file beside the old one. A run that was interrupted goes on from its newest
checkpoint. Knows no variants and no figures.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.composition.settings import Plan, Size
from benchmarks.composition.texts import Texts
from model_core.network.checkpoint import load_decoder, load_expert, save_decoder, save_expert
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.network.router import EVIDENCE_CAP
from model_core.packing.canonical import digest_of
from model_core.text.tokenizer import TextTokenizer
from model_core.training.base import pretrain
from model_core.training.expert import train_expert
from model_core.training.expert_recipe import ExpertRecipe
from model_core.training.progress import Progress

TOKENIZER_BYTES = 4_000_000
# Grows when the router or calibration makes other numbers of the same recipe.
ROUTER_VERSION = 2
Say = Callable[[str, Progress], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One size and seed of a plan, with the folder of its results.

    Attributes:
        plan: what is run.
        size: of the models.
        seed: of weights and orders.
        texts: what is read.
        root: of all cells.
    """

    plan: Plan
    size: Size
    seed: int
    texts: Texts
    root: Path

    @property
    def folder(self) -> Path:
        """Where this cell's results lie."""
        return self.root / self.size.name / str(self.seed)


def tokenizer(cell: Cell) -> TextTokenizer:
    """The tokenizer of all cells, trained on public text."""
    facts = {"texts": cell.texts.digest, "vocabulary": cell.plan.amounts.vocabulary}
    path = cell.root / f"tokenizer-{_short(facts)}.json"
    if path.exists():
        return TextTokenizer.load(path)
    made = TextTokenizer.train(_beginning(cell.texts), vocab_size=cell.plan.amounts.vocabulary)
    draft = path.with_suffix(f".{cell.size.name}-{cell.seed}.draft")
    made.save(draft)
    draft.replace(path)
    return TextTokenizer.load(path)


def _beginning(texts: Texts) -> list[str]:
    chosen, left = [], TOKENIZER_BYTES
    for document in texts.base:
        left -= document.size_bytes
        if left < 0:
            break
        chosen.append(document.text)
    return chosen


def base_path(cell: Cell) -> Path:
    """The file of the cell's base."""
    return cell.folder / f"base-{_short(_base_facts(cell))}.safetensors"


def base(cell: Cell, say: Say = lambda _what, _progress: None) -> Decoder:
    """The cell's public base."""
    shape = cell.size.shape(cell.plan.amounts.vocabulary, cell.plan.amounts.max_positions)
    recipe = cell.plan.base_recipe(cell.size)
    path = base_path(cell)
    if not path.exists():
        work = path.with_suffix(".work")
        decoder, _outcome = pretrain(
            shape,
            cell.texts.base,
            tokenizer(cell),
            recipe,
            seed=cell.seed,
            work_folder=work,
            on_step=lambda progress: say("base", progress),
        )
        draft = path.with_suffix(".draft")
        save_decoder(decoder, draft)
        draft.replace(path)
        shutil.rmtree(work, ignore_errors=True)
    return load_decoder(path, shape)


def expert(
    cell: Cell,
    decoder: Decoder,
    owner: str,
    say: Say = lambda _what, _progress: None,
    **changes: Any,
) -> Expert:
    """An owner's expert as the paper trains it: rows learned with it, no gates.

    Args:
        cell: whose base it stands beside.
        decoder: that base.
        owner: the domain.
        say: told of every step.
        changes: recipe fields that differ from the product's defaults.
    """
    path = expert_path(cell, owner, **changes)
    if not path.exists():
        work = path.with_suffix(".work")
        result = train_expert(
            decoder,
            tokenizer(cell),
            cell.texts.owners[owner],
            cell.texts.calibration,
            _expert_recipe(cell, changes),
            seed=cell.seed,
            work_folder=work,
            on_step=lambda progress: say(owner, progress),
        )
        assert result.expert is not None  # noqa: S101  (nobody asked it to stop)
        draft = path.with_suffix(".draft")
        save_expert(result.expert, draft)
        draft.replace(path)
        shutil.rmtree(work, ignore_errors=True)
    return load_expert(path, decoder.shape)


def expert_path(cell: Cell, owner: str, **changes: Any) -> Path:
    """The file of an owner's expert without gates."""
    recipe = _expert_recipe(cell, changes)
    facts = {
        "base": _base_facts(cell),
        "owner": owner,
        "steps": recipe.steps,
        "learning_rate": recipe.learning_rate,
        "changes": {"gated": False, **changes},
    }
    return cell.folder / f"{owner}-{_short(facts)}.safetensors"


def scores_path(cell: Cell, model: str) -> Path:
    """The file of one model's scores: a changed setting of gates or tuning scores only that anew."""
    recipe = _expert_recipe(cell, {"gated": True})
    settings: dict[str, Any] = {
        "gates": {"recipe": recipe.digest, "evidence_cap": EVIDENCE_CAP, "router": ROUTER_VERSION},
        "tuned": {"proxies": cell.plan.proxies, "steps": cell.plan.tuning_steps},
    }
    facts = {
        "experts": [expert_path(cell, owner).name for owner in cell.plan.owners],
        "model": model,
        "settings": settings.get(model),
        "top_k": cell.plan.top_k,
    }
    return cell.folder / f"scores-{model}-{_short(facts)}.json"


def _expert_recipe(cell: Cell, changes: dict[str, Any]) -> ExpertRecipe:
    return cell.plan.expert_recipe(cell.size, **{"gated": False, **changes})


def _base_facts(cell: Cell) -> dict[str, Any]:
    size = {name: value for name, value in asdict(cell.size).items() if name != "expert_steps"}
    return {
        "size": size,
        "amounts": asdict(cell.plan.amounts),
        "texts": cell.texts.digest,
        "seed": cell.seed,
    }


def _short(facts: dict[str, Any]) -> str:
    return digest_of(facts).removeprefix("sha256:")[:12]

# SPDX-License-Identifier: Apache-2.0
"""Gates and calibrates an expert that is trained, and chooses the text that this and its start look at.

The public text that travels with a base is halved by document: what gates are fitted on never calibrates.
Knows nothing of how the expert was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from model_core.errors import DatasetRefused
from model_core.evaluation.bits import cut_documents
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.text.documents import Document, split_of
from model_core.text.tokenizer import TextTokenizer
from model_core.training.calibration import CalibrationReport, bound_router_rows, calibrate, residual_norms
from model_core.training.expert_recipe import ExpertRecipe
from model_core.training.gates import GateFit, fit_gates, token_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class FittingTexts:
    """Text that rows, gates and calibration look at.

    Attributes:
        own_rows: beginnings of own documents, which rows and gates are fitted on.
        public_rows: the same of public documents.
        public: beginnings of the public documents of ``public_rows``.
        calibration: other public documents, which the expert is calibrated on.
        own_sample: beginnings of own documents, on which calibration looks what a shift costs.
    """

    own_rows: list[Tensor]
    public_rows: list[Tensor]
    public: tuple[Document, ...]
    calibration: tuple[Document, ...]
    own_sample: tuple[Document, ...]

    @property
    def rows(self) -> list[Tensor]:
        """Text that inner neurons are told apart by: own text, under privacy public text."""
        return self.own_rows or self.public_rows


def public_halves(public: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Splits calibration text by document: one half to fit gates on, the other to calibrate on."""
    halves: dict[str, list[Document]] = {"fit": [], "calibrate": []}
    for document in public:
        halves[split_of(document.id, {"fit": 0.5, "calibrate": 0.5}, salt="calibration")].append(document)
    if not (halves["fit"] and halves["calibrate"]):
        raise DatasetRefused(
            "The base carries too little calibration text: two documents at least are needed."
        )
    return halves["fit"], halves["calibrate"]


def fitting_texts(
    decoder: Decoder,
    tokenizer: TextTokenizer,
    documents: Sequence[Document],
    public: Sequence[Document],
    recipe: ExpertRecipe,
) -> FittingTexts:
    """Chooses beginnings of own and of public documents, as many and as long as the recipe says.

    Args:
        decoder: the base, for its longest sequence.
        tokenizer: the base's.
        documents: the owner's; none under privacy.
        public: the calibration text that travels with the base.
        recipe: how much of them.

    Raises:
        DatasetRefused: fewer public documents than halves.
    """
    fit, calibration = public_halves(public)
    fit_tokens = min(recipe.fit_tokens, decoder.shape.max_positions)
    spread = documents[:: max(1, len(documents) // recipe.fit_documents)][: recipe.fit_documents]
    return FittingTexts(
        own_rows=token_rows(spread, tokenizer, max_tokens=fit_tokens),
        public_rows=token_rows(fit[: recipe.fit_documents], tokenizer, max_tokens=fit_tokens),
        public=cut_documents(fit[: recipe.fit_documents], recipe.heldout_characters),
        calibration=cut_documents(calibration[: recipe.calibration_documents], recipe.heldout_characters),
        own_sample=cut_documents(spread[:: max(1, len(spread) // 16)][:16], recipe.heldout_characters),
    )


def gate_expert(
    decoder: Decoder,
    tokenizer: TextTokenizer,
    expert: Expert,
    documents: Sequence[Document],
    public: Sequence[Document],
    recipe: ExpertRecipe,
    *,
    on_phase: Callable[[str], None] = lambda _name: None,
) -> tuple[tuple[GateFit, ...], CalibrationReport]:
    """Bounds, gates and calibrates an expert that is already trained; with other settings, anew.

    Args:
        decoder: the base.
        tokenizer: the base's.
        expert: its router rows are bounded in place, its gates replaced.
        documents: the owner's training text.
        public: the calibration text that travels with the base.
        recipe: settings; those of the optimisation are not read.
        on_phase: told the phase that begins.

    Returns:
        One fit per layer, and what calibration found.

    Raises:
        DatasetRefused: too little text.
    """
    materials = fitting_texts(decoder, tokenizer, documents, public, recipe)
    return gate_and_calibrate(decoder, tokenizer, expert, materials, recipe, on_phase)


def gate_and_calibrate(
    decoder: Decoder,
    tokenizer: TextTokenizer,
    expert: Expert,
    texts: FittingTexts,
    recipe: ExpertRecipe,
    on_phase: Callable[[str], None],
) -> tuple[tuple[GateFit, ...], CalibrationReport]:
    """As ``gate_expert``, on texts that are chosen already."""
    on_phase("gates")
    norms = residual_norms(decoder, texts.public_rows)
    clipped = bound_router_rows(expert, norms, logit_bound=recipe.row_logit_bound)
    fits = fit_expert_gates(decoder, expert, texts, recipe)
    on_phase("calibrate")
    report = calibrate(
        decoder,
        expert,
        texts.calibration,
        texts.own_sample,
        tokenizer,
        tolerance=recipe.public_tolerance,
        own_slack=recipe.own_slack,
    )
    return tuple(fits), replace(report, rows_clipped=clipped, row_logit_bound=recipe.row_logit_bound)


def fit_expert_gates(
    decoder: Decoder, expert: Expert, materials: FittingTexts, recipe: ExpertRecipe
) -> list[GateFit]:
    """Fits the gates of every layer as the recipe says and freezes them; one fit per layer."""
    fits = fit_gates(
        decoder,
        expert,
        materials.own_rows,
        materials.public_rows,
        positions=recipe.gate_positions,
        ridge=recipe.gate_ridge,
        strength=recipe.gate_strength,
    )
    for index in range(decoder.shape.n_layers):
        gate = expert.layer(index).gate
        if gate is not None:
            gate.requires_grad_(False)
    return fits

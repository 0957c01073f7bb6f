# SPDX-License-Identifier: Apache-2.0
"""Trains one owner's expert beside the frozen public model, gates it and calibrates it.

The recipe is the coordinated training of FlexOlmo (arXiv 2507.07024, section 3.3): a two-expert model of the
public network and a copy of it, both always on, softmax over two logits, only the copy and its router rows
trained, only the owner's text seen. Around it stand our domain gates and the calibration against public
text. The base is read, never written: ``base_digest`` of its tensors is compared before and after.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from model_core.errors import DatasetRefused, RecipeRefused, TrainingError
from model_core.evaluation.bits import cut_documents
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.packing.forms import MAX_PIECES, ExpertKind, FfnForm
from model_core.packing.manifest import ModelShape
from model_core.text.batches import pack
from model_core.text.documents import Document, split_of
from model_core.text.tokenizer import TextTokenizer
from model_core.training.calibration import (
    CalibrationReport,
    bound_router_rows,
    calibrate,
    residual_norms,
)
from model_core.training.gates import GateFit, fit_gates, residual_means, set_router_rows, token_rows
from model_core.training.kinds import convert, start_expert, wanted_form
from model_core.training.machine import Notice
from model_core.training.objective import PairObjective
from model_core.training.privacy import MAX_EPSILON, PrivacyPlan, PrivacySettings
from model_core.training.private_expert import lower_bias, private_run, random_rows
from model_core.training.progress import Progress
from model_core.training.recipe import TrainingRecipe
from model_core.training.run import RunOutcome, TrainingRun


class ExpertRecipe(TrainingRecipe):
    """Settings of an expert's training, gates and calibration.

    The defaults make a useful expert of the starter base in about two minutes of one core.

    Attributes:
        steps: optimizer steps.
        learning_rate: peak.
        checkpoint_every: steps between checkpoints.
        row_lift: logit that the owner's mean residual gets from the starting router rows.
        fit_documents: documents a side that rows and gates are fitted on.
        fit_tokens: longest beginning of each that is read.
        gate_positions: positions of each that a gate sees.
        gate_ridge: weight of a gate's squared norm.
        gate_strength: what a fitted gate's logit is multiplied by.
        gated: whether the expert gets domain gates and is calibrated; without them it is the paper's expert.
        gates_in_training: whether gates are fitted once before training too, so that the expert learns under
            the shares that it will be served with.
        public_tolerance: relative excess of bits per byte on public text that calibration allows the pair.
        own_slack: relative loss on own text that calibration accepts to have the gates shut elsewhere; 0 for
            none, since gates that share one belief shut each other where they should.
        row_logit_bound: largest logit that a router row may give a residual of typical length.
        calibration_documents: public documents that calibration scores, none of them used for fitting.
        heldout_share: share of the owner's documents kept out of training for the job's own figures.
        heldout_documents: most documents that those figures use.
        heldout_characters: beginning of each document that calibration and evaluation score.
        dp_noise_multiplier: over 0 trains with differential privacy: standard deviation of the noise over
            ``dp_clip_norm``. ``batch_rows * accumulation`` documents are then taken a step on average.
        dp_target_epsilon: over 0 does so too, with the noise that costs at most this epsilon.
        dp_clip_norm: largest length of one document's gradient; takes the place of ``clip_norm``.
        dp_delta: probability with which the guarantee may fail; below one over the documents.
        expert_kind: form of the expert's networks (``model_core.packing.forms``).
        expert_width: inner neurons of a ``narrow`` expert; 0 for every other kind.
        expert_rank: of a ``low_rank`` expert; 0 for every other kind.
        expert_pieces: of a ``split`` expert; 0 for every other kind.
        trained_as_kind: whether the expert is of its kind from the first step; else it is trained in full and
            turned into its kind before gates and calibration, which see what will be served either way.
    """

    steps: int = Field(default=120, ge=1, le=10_000_000)
    learning_rate: float = Field(default=3e-3, gt=0, le=1, allow_inf_nan=False)
    checkpoint_every: int = Field(default=20, ge=1, le=10_000_000)
    row_lift: float = Field(default=1.0, ge=0, le=20, allow_inf_nan=False)
    fit_documents: int = Field(default=128, ge=2, le=4096)
    fit_tokens: int = Field(default=256, ge=8, le=8192)
    gate_positions: int = Field(default=24, ge=1, le=1024)
    gate_ridge: float = Field(default=2e-3, ge=1e-8, le=100)
    gate_strength: float = Field(default=1.5, gt=0, le=10)
    gated: bool = True
    gates_in_training: bool = False
    public_tolerance: float = Field(default=0.0075, ge=0, le=1)
    own_slack: float = Field(default=0.0, ge=0, le=1)
    row_logit_bound: float = Field(default=20.0, gt=0, le=100)
    calibration_documents: int = Field(default=24, ge=1, le=4096)
    heldout_share: float = Field(default=0.06, gt=0, lt=1)
    heldout_documents: int = Field(default=24, ge=1, le=10_000)
    heldout_characters: int = Field(default=1600, ge=64, le=1_000_000)
    dp_noise_multiplier: float = Field(default=0.0, ge=0, le=10_000, allow_inf_nan=False)
    dp_target_epsilon: float = Field(default=0.0, ge=0, le=MAX_EPSILON, allow_inf_nan=False)
    dp_clip_norm: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    dp_delta: float = Field(default=1e-5, gt=0, le=0.01, allow_inf_nan=False)
    expert_kind: ExpertKind = "full"
    expert_width: int = Field(default=0, ge=0, le=1_048_576)
    expert_rank: int = Field(default=0, ge=0, le=1_048_576)
    expert_pieces: int = Field(default=0, ge=0, le=MAX_PIECES)
    trained_as_kind: bool = False

    @model_validator(mode="after")
    def _privacy_is_whole(self) -> Self:
        if self.dp_noise_multiplier and self.dp_target_epsilon:
            raise ValueError("give dp_noise_multiplier or dp_target_epsilon, the other follows from it")
        if self.privacy and self.gated:
            raise ValueError("gates look at own text outside the noise: a private recipe needs gated=false")
        return self

    def form(self, shape: ModelShape) -> FfnForm:
        """The form of the expert's networks beside a base.

        Raises:
            RecipeRefused: sizes that the kind does not have, or that do not fit the base.
        """
        if self.trained_as_kind and self.expert_kind == "int8":
            raise RecipeRefused(
                "Integers cannot be trained; leave trained_as_kind off.", fields=["trained_as_kind"]
            )
        return wanted_form(
            shape,
            self.expert_kind,
            width=self.expert_width,
            rank=self.expert_rank,
            pieces=self.expert_pieces,
        )

    @property
    def privacy(self) -> PrivacySettings | None:
        """What the recipe asks of differential privacy; None: nothing."""
        if not (self.dp_noise_multiplier or self.dp_target_epsilon):
            return None
        return PrivacySettings(
            noise_multiplier=self.dp_noise_multiplier,
            target_epsilon=self.dp_target_epsilon,
            clip_norm=self.dp_clip_norm,
            delta=self.dp_delta,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertResult:
    """A trained, gated and calibrated expert with what is worth telling about it.

    Attributes:
        expert: its weights; None if the run was asked to stop.
        outcome: how the optimisation went.
        gates: one fit per layer; none if the recipe wants no gates.
        calibration: against public text; None without gates.
        packed_tokens: tokens of the training text.
        data_digest: digest of the packed rows.
        base_tensors_digest: digest of every base tensor, equal before and after.
        privacy: what a differentially private run did and cost; None for others.
        kept_energy: share of the squared norm of what training changed that a conversion to ``low_rank``
            kept; 1 for every other way.
    """

    expert: Expert | None
    outcome: RunOutcome
    gates: tuple[GateFit, ...]
    calibration: CalibrationReport | None
    packed_tokens: int
    data_digest: str
    base_tensors_digest: str
    privacy: PrivacyPlan | None = None
    kept_energy: float = 1.0


def tensors_digest(module: nn.Module) -> str:
    """Digest over names, shapes and bytes of all tensors of a module: equal means byte-identical."""
    state = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        state.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return "sha256:" + state.hexdigest()


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


def train_expert(
    decoder: Decoder,
    tokenizer: TextTokenizer,
    documents: Sequence[Document],
    public: Sequence[Document],
    recipe: ExpertRecipe,
    *,
    seed: int,
    base_digest: str = "",
    work_folder: Path | None = None,
    on_phase: Callable[[str], None] = lambda _name: None,
    on_step: Callable[[Progress], None] = lambda _progress: None,
    on_notice: Callable[[Notice], None] = lambda _notice: None,
    stop: Callable[[], bool] = lambda: False,
) -> ExpertResult:
    """Makes an expert from an owner's documents.

    Args:
        decoder: the base, fp32; not changed.
        tokenizer: the base's.
        documents: the owner's training text.
        public: the calibration text that travels with the base.
        recipe: settings.
        seed: of document order and data order.
        base_digest: of the base bundle; a checkpoint made beside another base is refused.
        work_folder: for checkpoints and metrics; an interrupted run goes on from it.
        on_phase: told the phase that begins.
        on_step: called after every optimizer step.
        on_notice: told what the run goes on in spite of, such as another machine.
        stop: True ends the attempt after a checkpoint.

    Returns:
        The result; ``expert`` is None if the run was stopped before its end.

    Raises:
        DatasetRefused: too little text.
        RecipeRefused: privacy figures that protect nothing or cannot be reached with these documents, or a
            form of expert that the base cannot have.
        TrainingDiverged: the loss is not finite or has run away.
        CheckpointInvalid: the work folder belongs to another run.
        TrainingError: a tensor of the base changed (never expected).
    """
    form = recipe.form(decoder.shape)
    frozen = tensors_digest(decoder)
    on_phase("tokenise")
    # Under privacy own text reaches the noised steps and nothing else, so it is not even handed on.
    seen = () if recipe.privacy else documents
    materials = _fitting_texts(decoder, tokenizer, seen, public, recipe)
    expert = _start(decoder, materials, recipe, seed)
    objective = PairObjective(
        decoder,
        expert,
        logit_z_loss=recipe.logit_z_loss,
        router_z_loss=recipe.router_z_loss,
        recompute=recipe.recompute_activations,
    )
    identity, private = {"base": base_digest}, None
    if recipe.privacy is None:
        packed = pack(documents, tokenizer, sequence_tokens=recipe.sequence_tokens, seed=seed)
    else:
        private = private_run(
            objective,
            documents,
            materials.public,
            tokenizer,
            recipe,
            recipe.privacy,
            identity={**identity, "seed": str(seed)},
            work_folder=work_folder,
        )
        packed, identity = private.rows.packed, private.identity
    on_phase("train")
    run = TrainingRun(
        objective,
        packed,
        recipe,
        seed=seed,
        folder=work_folder,
        identity=identity,
        rule=private.steps if private else None,
        rows=private.steps if private else None,
    )
    outcome = run.train(on_step=on_step, stop=stop, on_notice=on_notice)
    if tensors_digest(decoder) != frozen:
        raise TrainingError("A tensor of the base changed during training; the run is void.")
    result = ExpertResult(
        expert=None,
        outcome=outcome,
        gates=(),
        calibration=None,
        packed_tokens=packed.tokens,
        data_digest=packed.digest,
        base_tensors_digest=frozen,
        privacy=private.plan if private else None,
    )
    if not outcome.finished:
        return result
    expert, kept_energy = convert(decoder, expert.requires_grad_(False).eval(), form, materials.rows)
    result = replace(result, kept_energy=kept_energy)
    if not recipe.gated:
        norms = residual_norms(decoder, materials.public_rows)
        bound_router_rows(expert, norms, logit_bound=recipe.row_logit_bound)
        if private:
            on_phase("calibrate")
            lower_bias(decoder, expert, materials.calibration, tokenizer, tolerance=recipe.public_tolerance)
        return replace(result, expert=expert)
    fits, report = _finish(decoder, tokenizer, expert, materials, recipe, on_phase)
    return replace(result, expert=expert, gates=tuple(fits), calibration=report)


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
    materials = _fitting_texts(decoder, tokenizer, documents, public, recipe)
    return _finish(decoder, tokenizer, expert, materials, recipe, on_phase)


def _finish(
    decoder: Decoder,
    tokenizer: TextTokenizer,
    expert: Expert,
    texts: _FittingTexts,
    recipe: ExpertRecipe,
    on_phase: Callable[[str], None],
) -> tuple[tuple[GateFit, ...], CalibrationReport]:
    on_phase("gates")
    norms = residual_norms(decoder, texts.public_rows)
    clipped = bound_router_rows(expert, norms, logit_bound=recipe.row_logit_bound)
    fits = _fit_gates(decoder, expert, texts, recipe)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _FittingTexts:
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


def _fitting_texts(
    decoder: Decoder,
    tokenizer: TextTokenizer,
    documents: Sequence[Document],
    public: Sequence[Document],
    recipe: ExpertRecipe,
) -> _FittingTexts:
    fit, calibration = public_halves(public)
    fit_tokens = min(recipe.fit_tokens, decoder.shape.max_positions)
    spread = documents[:: max(1, len(documents) // recipe.fit_documents)][: recipe.fit_documents]
    return _FittingTexts(
        own_rows=token_rows(spread, tokenizer, max_tokens=fit_tokens),
        public_rows=token_rows(fit[: recipe.fit_documents], tokenizer, max_tokens=fit_tokens),
        public=cut_documents(fit[: recipe.fit_documents], recipe.heldout_characters),
        calibration=cut_documents(calibration[: recipe.calibration_documents], recipe.heldout_characters),
        own_sample=cut_documents(spread[:: max(1, len(spread) // 16)][:16], recipe.heldout_characters),
    )


def _start(decoder: Decoder, materials: _FittingTexts, recipe: ExpertRecipe, seed: int) -> Expert:
    """A copy of the public expert with router rows that already tell the owner's text from public text.

    Under privacy own text may not be looked at here, and the rows are drawn at random.
    """
    form = recipe.form(decoder.shape) if recipe.trained_as_kind else FfnForm(d_ffn=decoder.shape.d_ffn)
    expert = start_expert(decoder, form, materials.rows, seed=seed)
    if recipe.privacy:
        random_rows(expert, seed=seed)
        return expert
    own_LD = residual_means(decoder, materials.own_rows)
    public_LD = residual_means(decoder, materials.public_rows)
    set_router_rows(expert, own_LD, public_LD, lift=recipe.row_lift)
    if recipe.gated and recipe.gates_in_training:
        _fit_gates(decoder, expert, materials, recipe)
    return expert


def _fit_gates(
    decoder: Decoder, expert: Expert, materials: _FittingTexts, recipe: ExpertRecipe
) -> list[GateFit]:
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

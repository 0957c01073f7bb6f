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

import torch
from torch import nn

from model_core.errors import TrainingError
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.packing.forms import FfnForm
from model_core.text.batches import pack
from model_core.text.documents import Document
from model_core.text.tokenizer import TextTokenizer
from model_core.training.calibration import CalibrationReport, bound_router_rows, residual_norms
from model_core.training.expert_recipe import ExpertRecipe
from model_core.training.finishing import FittingTexts, fit_expert_gates, fitting_texts, gate_and_calibrate
from model_core.training.gates import GateFit, residual_means, set_router_rows
from model_core.training.kinds import convert, start_expert
from model_core.training.machine import Notice
from model_core.training.objective import PairObjective
from model_core.training.privacy import PrivacyPlan
from model_core.training.private_expert import lower_bias, private_run, random_rows
from model_core.training.progress import Progress
from model_core.training.run import RunOutcome, TrainingRun


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
    materials = fitting_texts(decoder, tokenizer, seen, public, recipe)
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
    fits, report = gate_and_calibrate(decoder, tokenizer, expert, materials, recipe, on_phase)
    return replace(result, expert=expert, gates=tuple(fits), calibration=report)


def _start(decoder: Decoder, materials: FittingTexts, recipe: ExpertRecipe, seed: int) -> Expert:
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
        fit_expert_gates(decoder, expert, materials, recipe)
    return expert

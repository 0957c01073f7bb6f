# SPDX-License-Identifier: Apache-2.0
"""The settings of an expert's training, gates and calibration, and what of them contradicts itself."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from model_core.errors import RecipeRefused
from model_core.packing.forms import MAX_PIECES, ExpertKind, FfnForm
from model_core.packing.manifest import ModelShape
from model_core.training.kinds import wanted_form
from model_core.training.privacy import MAX_EPSILON, PrivacySettings
from model_core.training.recipe import TrainingRecipe


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

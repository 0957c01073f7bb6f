# SPDX-License-Identifier: Apache-2.0
"""The settings of a training run, with the bounds outside which a run is refused.

Defaults follow the coordinated expert training of FlexOlmo (arXiv 2507.07024, section 3.3 and appendix A):
AdamW with betas 0.9 and 0.95, no weight decay, clipping at 1, cosine with warm-up, a router z-loss and a
logit z-loss. Sizes and lengths fit the starter base and two shared cores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_core.errors import RecipeRefused
from model_core.packing.canonical import digest_of

Precision = Literal["auto", "fp32", "bf16"]


class TrainingRecipe(BaseModel):
    """Settings of one optimisation.

    Attributes:
        steps: optimizer steps.
        batch_rows: sequences a forward pass (B).
        accumulation: forward passes a step.
        sequence_tokens: tokens a sequence (S).
        learning_rate: peak.
        final_share: share of the peak at the last step.
        warmup_share: share of the steps in which the rate rises from 0.
        beta1: AdamW's first decay.
        beta2: its second.
        weight_decay: decoupled; 0 for experts, since a frozen or masked tensor must not shrink.
        clip_norm: bound of the gradient's norm.
        router_z_loss: weight of the squared log-sum-exp of router logits.
        logit_z_loss: weight of the squared log-sum-exp of vocabulary logits.
        precision: ``auto`` measures this machine and takes bf16 autocast only where it is faster.
        checkpoint_every: steps between checkpoints.
        recompute_activations: whether a layer's activations are made again in backward instead of kept
            (activation checkpointing): less memory, about a third more time, the same bits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=400, ge=1, le=10_000_000)
    batch_rows: int = Field(default=4, ge=1, le=4096)
    accumulation: int = Field(default=1, ge=1, le=4096)
    sequence_tokens: int = Field(default=512, ge=8, le=131_072)
    learning_rate: float = Field(default=2e-3, gt=0, le=1, allow_inf_nan=False)
    final_share: float = Field(default=0.1, ge=0, le=1)
    warmup_share: float = Field(default=0.1, ge=0, le=1)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    clip_norm: float = Field(default=1.0, gt=0, le=1e6)
    router_z_loss: float = Field(default=1e-3, ge=0, le=1)
    logit_z_loss: float = Field(default=1e-5, ge=0, le=1)
    precision: Precision = "auto"
    checkpoint_every: int = Field(default=100, ge=1, le=10_000_000)
    recompute_activations: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Reads settings by name; what is not named keeps its default.

        Raises:
            RecipeRefused: an unknown name or a value outside its bounds (``facts["fields"]``).
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            raise refused(error) from error

    def learning_rate_at(self, step: int) -> float:
        """The rate of a step counted from 0: linear warm-up, then a cosine down to ``final_share``."""
        warmup = math.ceil(self.warmup_share * self.steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.learning_rate * (self.final_share + (1 - self.final_share) * cosine)

    @property
    def step_tokens(self) -> int:
        """Tokens that one optimizer step learns from."""
        return self.batch_rows * self.accumulation * self.sequence_tokens

    @property
    def digest(self) -> str:
        """Digest of the settings that change a bit of the result; a checkpoint of another is refused."""
        return digest_of(self.model_dump(mode="json", exclude={"recompute_activations"}))


def refused(error: ValidationError) -> RecipeRefused:
    """The typed refusal of a recipe that did not validate."""
    wrong = {".".join(str(part) for part in item["loc"]): item["msg"] for item in error.errors()}
    listed = "; ".join(f"{name[:60]}: {why[:120]}" for name, why in list(wrong.items())[:6])
    return RecipeRefused(f"The recipe is outside its bounds: {listed}.", fields=sorted(wrong)[:32])

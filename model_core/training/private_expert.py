# SPDX-License-Identifier: Apache-2.0
"""What replaces the steps of an expert's training that would look at private text outside the noise.

Without privacy, router rows start from means over own text, gates are fitted on it, and calibration weighs
what a shift costs there. Under privacy, rows start at random, there are no gates, and the expert's bias is
lowered on public text alone until the pair keeps the base's quality there. All of it is computed from noised
weights and public text, so it costs no further epsilon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from model_core.evaluation.bits import bits_per_byte, bits_per_document
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.text.documents import Document
from model_core.text.tokenizer import TextTokenizer
from model_core.training.calibration import PUBLIC_SHARE_LIMIT, public_share
from model_core.training.objective import Objective
from model_core.training.privacy import PrivacyPlan, PrivacySettings, plan_privacy
from model_core.training.private_gradients import (
    DocumentRows,
    PrivateSteps,
    document_rows,
    key_fingerprint,
    run_key,
)
from model_core.training.recipe import TrainingRecipe

# The lowest outweighs the largest logit that a bounded router row gives a residual of typical length.
_BIASES = (0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0, -20.0, -40.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivateRun:
    """A private run before its first step.

    Attributes:
        plan: what it does and costs.
        rows: the owner's documents.
        identity: what a checkpoint must share to be resumed; holds a fingerprint of the key.
        steps: both seams of the training loop.
    """

    plan: PrivacyPlan
    rows: DocumentRows
    identity: dict[str, str]
    steps: PrivateSteps


def private_run(
    objective: Objective,
    documents: Sequence[Document],
    public: Sequence[Document],
    tokenizer: TextTokenizer,
    recipe: TrainingRecipe,
    settings: PrivacySettings,
    *,
    identity: Mapping[str, str],
    work_folder: Path | None,
) -> PrivateRun:
    """Plans a private run and draws or reads its key.

    Args:
        objective: what is trained.
        documents: the owner's training text; each is one unit of privacy.
        public: public documents, on which each step's loss is reported.
        tokenizer: the base's.
        recipe: settings; ``batch_rows * accumulation`` documents are taken a step on average.
        settings: of privacy.
        identity: what the run stands beside (base digest, seed).
        work_folder: where the key is kept; None forgets it with the process.

    Raises:
        RecipeRefused: figures that protect nothing or cannot be reached.
    """
    plan = plan_privacy(
        settings,
        documents=len(documents),
        expected_documents=recipe.batch_rows * recipe.accumulation,
        steps=recipe.steps,
    )
    rows = document_rows(documents, tokenizer, sequence_tokens=recipe.sequence_tokens)
    key = run_key(work_folder, {**identity, "recipe": recipe.digest, "data": rows.packed.digest})
    steps = PrivateSteps(
        plan,
        rows,
        dict(objective.trainable()),
        key=key,
        public=document_rows(public, tokenizer, sequence_tokens=recipe.sequence_tokens),
        end_of_text_id=tokenizer.end_of_text_id,
    )
    return PrivateRun(
        plan=plan, rows=rows, identity={**identity, "privacy": key_fingerprint(key)}, steps=steps
    )


@torch.no_grad()
def random_rows(expert: Expert, *, seed: int, std: float = 0.02) -> None:
    """Draws the starting router rows: they may not come from own text."""
    generator = torch.Generator().manual_seed(seed)
    for layer in range(len(expert.layers)):
        row = expert.layer(layer).router.row
        row.copy_(std * torch.randn(row.shape, generator=generator))


def lower_bias(
    decoder: Decoder,
    expert: Expert,
    public: Sequence[Document],
    tokenizer: TextTokenizer,
    *,
    tolerance: float,
    max_tokens: int = 1024,
) -> float:
    """Lowers the bias in every layer until the pair is within a tolerance of the base on public text.

    And until the expert takes no more of it than ``PUBLIC_SHARE_LIMIT``.

    Args:
        decoder: the base.
        expert: without gates; its biases are changed in place.
        public: calibration documents.
        tokenizer: the base's.
        tolerance: largest relative excess of bits per byte over the base.
        max_tokens: evaluation window.

    Returns:
        The relative excess that remains; above the tolerance if even the lowest bias does not reach it.
    """
    base = bits_per_byte(bits_per_document(decoder, public, tokenizer, window_tokens=max_tokens))
    excess = 0.0
    for bias in _BIASES:
        for layer in range(len(expert.layers)):
            part = expert.layer(layer).router.bias
            assert part is not None  # noqa: S101  (only the public expert has none)
            part.fill_(bias)
        scores = bits_per_document(
            decoder, public, tokenizer, experts=(expert,), top_k=2, window_tokens=max_tokens
        )
        excess = bits_per_byte(scores) / base - 1
        share = public_share(decoder, expert, public, tokenizer, max_tokens=max_tokens)
        if excess <= tolerance and share <= PUBLIC_SHARE_LIMIT:
            break
    return excess

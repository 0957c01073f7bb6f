# SPDX-License-Identifier: Apache-2.0
"""What the benchmark trains and scores: sizes, recipes, owners and amounts of text.

Whatever changes a trained tensor must be a field here, since the cache is named by digests of the fields.
Knows neither texts nor tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from model_core.packing.manifest import ModelShape
from model_core.training.expert_recipe import ExpertRecipe
from model_core.training.recipe import TrainingRecipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """One model size and how long its base and its experts are trained.

    Attributes:
        name: of its folder.
        n_layers: layers.
        d_model: width of the residual stream.
        n_heads: attention heads.
        d_ffn: inner width of a feed-forward network.
        tied: whether the vocabulary projection is the embedding.
        base_steps: optimizer steps of the base.
        expert_steps: optimizer steps of each expert.
    """

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    d_ffn: int
    tied: bool
    base_steps: int
    expert_steps: int

    def shape(self, vocabulary: int, max_positions: int) -> ModelShape:
        """The decoder's sizes."""
        return ModelShape(
            n_layers=self.n_layers,
            d_model=self.d_model,
            n_heads=self.n_heads,
            n_kv_heads=self.n_heads,
            d_ffn=self.d_ffn,
            vocab_size=vocabulary,
            max_positions=max_positions,
            rope_theta=10_000.0,
            norm_eps=1e-6,
            tie_embeddings=self.tied,
        )


SMALL = Size(
    name="1.4M",
    n_layers=4,
    d_model=128,
    n_heads=4,
    d_ffn=384,
    tied=True,
    base_steps=600,
    expert_steps=120,
)
LARGE = Size(
    name="5.5M",
    n_layers=4,
    d_model=256,
    n_heads=4,
    d_ffn=768,
    tied=False,
    base_steps=360,
    expert_steps=90,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Amounts:
    """How much text is used, and in which pieces.

    Attributes:
        vocabulary: tokens of the tokenizer, which is trained on public text.
        max_positions: positions of the models and tokens of a scored passage at most.
        sequence_tokens: tokens a training row.
        batch_rows: rows a step.
        base_bytes: public text that the base is trained on, at most.
        calibration_bytes: other public text that travels with the base.
        owner_bytes: text of each owner, at most.
        passage_characters: length of a passage that is scored.
        passages: passages a domain and half of the held-out text, at most.
        passages_a_document: of them from one document, at most.
    """

    vocabulary: int = 4096
    max_positions: int = 1024
    sequence_tokens: int = 512
    batch_rows: int = 4
    base_bytes: int = 8_000_000
    calibration_bytes: int = 400_000
    owner_bytes: int = 3_000_000
    passage_characters: int = 2_000
    passages: int = 32
    passages_a_document: int = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One run of the benchmark.

    Attributes:
        owners: private domains, in the order of the tables.
        sizes: model sizes.
        seeds: of weights, document order and data order.
        top_k: experts per token in compositions, the public one counted.
        amounts: of text.
        proxies: public documents that stand for each owner's text when the router is tuned.
        tuning_steps: optimizer steps of that.
    """

    owners: tuple[str, ...] = ("code", "math", "news", "academic")
    sizes: tuple[Size, ...] = (SMALL, LARGE)
    seeds: tuple[int, ...] = (1, 2, 3)
    top_k: int = 3
    amounts: Amounts = field(default_factory=Amounts)
    proxies: int = 32
    tuning_steps: int = 60

    def base_recipe(self, size: Size) -> TrainingRecipe:
        """How the public base is trained."""
        return TrainingRecipe(
            steps=size.base_steps,
            batch_rows=self.amounts.batch_rows,
            sequence_tokens=self.amounts.sequence_tokens,
            learning_rate=3e-3,
            warmup_share=0.05,
            weight_decay=0.1,
        )

    def expert_recipe(self, size: Size, **changes: Any) -> ExpertRecipe:
        """How experts are trained: the product's defaults but for what a change names."""
        return ExpertRecipe.of(
            {
                "steps": size.expert_steps,
                "batch_rows": self.amounts.batch_rows,
                "sequence_tokens": self.amounts.sequence_tokens,
                **changes,
            }
        )

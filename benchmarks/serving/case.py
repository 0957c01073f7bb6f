# SPDX-License-Identifier: Apache-2.0
"""What is measured: sizes of a model, number formats, and cells of concurrency and prompt length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from model_core.packing.manifest import Family, ModelShape

# int8 means experts in 8-bit integers beside an fp32 base; no peer holds those.
Format = Literal["fp32", "bf16", "int8"]
ITEM_BYTES = {"fp32": 4, "bf16": 2, "int8": 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """A mixture's sizes.

    Attributes:
        name: for people.
        family: of the decoder; ``olmo2`` is the FlexOlmo layout.
        layers: L.
        width: D.
        inner: F of every expert.
        heads: of attention, none grouped.
        vocabulary: V.
        positions: longest sequence in tokens.
        experts: n in each layer, the public one counted.
        top_k: experts per token.
    """

    name: str
    family: Family = "olmo2"
    layers: int = 8
    width: int
    inner: int
    heads: int
    vocabulary: int
    positions: int = 2048
    experts: int = 8
    top_k: int = 2

    @property
    def shape(self) -> ModelShape:
        """The base's shape."""
        return ModelShape(
            family=self.family,
            n_layers=self.layers,
            d_model=self.width,
            n_heads=self.heads,
            n_kv_heads=self.heads,
            d_ffn=self.inner,
            vocab_size=self.vocabulary,
            max_positions=self.positions,
            rope_theta=10_000.0,
            norm_eps=1e-6,
        )

    @property
    def parameters(self) -> int:
        """Matrices of base and experts, the embedding counted."""
        layer = 4 * self.width**2 + self.experts * (3 * self.width * self.inner + self.width)
        return self.layers * layer + 2 * self.vocabulary * self.width

    def with_sizes(self, **sizes: Any) -> Sizes:
        """The same with other sizes."""
        return replace(self, **sizes)


SMALL = Sizes(name="155M", width=512, inner=1408, heads=8, vocabulary=8192)
LARGER = Sizes(name="620M", width=1024, inner=2816, heads=16, vocabulary=16_384)
SMALL_OLMOE = SMALL.with_sizes(name="155M OLMoE", family="olmoe")
# Sixteen times as many experts must still fit beside everything else.
GROWING = Sizes(name="growing", layers=4, width=512, inner=704, heads=8, vocabulary=8192, positions=4096)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One setting in which all sides take turns.

    Attributes:
        sizes: of the model.
        number_format: of weights and cache.
        concurrency: sequences at a time.
        prompt_tokens: of each.
        new_tokens: of each, beyond what a side generates while others still wait for their first.
        rounds: turns of each side, after one that is not counted.
    """

    sizes: Sizes
    number_format: Format = "fp32"
    concurrency: int = 1
    prompt_tokens: int = 64
    new_tokens: int = 32
    rounds: int = 5

    @property
    def label(self) -> str:
        """For people."""
        return (
            f"{self.sizes.name}, {self.number_format}, {self.concurrency} at a time, "
            f"prompts of {self.prompt_tokens:,}"
        )

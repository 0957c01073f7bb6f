# SPDX-License-Identifier: Apache-2.0
"""One setting of the benchmark: a shape, a batch and a number format, and random rows for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from model_core.packing.manifest import ModelShape
from model_core.text.batches import PackedText

Format = Literal["fp32", "bf16"]
_ROWS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What both sides train.

    Attributes:
        name: for people.
        layers: L.
        width: D.
        inner: F of the public and of the own network.
        heads: of attention, none grouped.
        vocabulary: V.
        rows: B, sequences an optimizer step.
        positions: S.
        number_format: fp32, or bf16 autocast over fp32 weights.
    """

    name: str
    layers: int
    width: int
    inner: int
    heads: int
    vocabulary: int
    rows: int = 4
    positions: int = 512
    number_format: Format = "fp32"

    @property
    def shape(self) -> ModelShape:
        """The base's shape."""
        return ModelShape(
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
    def step_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.rows * self.positions

    @property
    def label(self) -> str:
        """Name and format."""
        return f"{self.name}, {self.number_format}"

    @property
    def parameters(self) -> int:
        """Of base and expert together."""
        layer = 4 * self.width**2 + 2 * 3 * self.width * self.inner
        return self.layers * layer + 2 * self.vocabulary * self.width

    def in_format(self, number_format: Format) -> Case:
        """The same in another number format."""
        return replace(self, number_format=number_format)

    def with_sizes(self, **sizes: Any) -> Case:
        """The same with other sizes."""
        return replace(self, **sizes)

    def packed(self) -> PackedText:
        """Random rows."""
        rows = np.random.default_rng(0).integers(0, self.vocabulary, (_ROWS, self.positions + 1))
        return PackedText(rows_NS1=rows.astype(np.int32), tokens=rows.size, text_bytes=rows.size)


STARTER = Case(name="starter (L6 D256 F768 V4096)", layers=6, width=256, inner=768, heads=4, vocabulary=4096)
LARGER = Case(
    name="larger (L8 D512 F1536 V16384)", layers=8, width=512, inner=1536, heads=8, vocabulary=16384
)

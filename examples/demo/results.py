# SPDX-License-Identifier: Apache-2.0
"""What the demo measured; the tables and the report are functions of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Bits per byte of one model on one domain's held-out documents.

    Attributes:
        mean: over all bytes of the documents.
        delta_low: lower end of the document-bootstrap 95 % interval of (model minus base).
        delta_high: upper end.
        documents: how many documents.
    """

    mean: float
    delta_low: float
    delta_high: float
    documents: int


@dataclass(frozen=True, kw_only=True)
class StreamTrace:
    """One open stream of the withdrawal.

    Attributes:
        index: which stream.
        arrivals_s: seconds since the first stream was opened at which each chunk of tokens arrived.
        tokens: tokens that arrived with each chunk.
        failed: the refusal's code, or None.
        before_tokens: tokens of the segments before the withdrawal.
        before_weight_ppm: routed weight of the withdrawn expert in them.
        after_tokens: tokens of the segments after it.
        after_weight_ppm: routed weight of the withdrawn expert in them (must be 0).
        after_private_ppm: routed weight of the experts that remain in them.
    """

    index: int
    arrivals_s: tuple[float, ...]
    tokens: tuple[int, ...]
    failed: str | None
    before_tokens: int
    before_weight_ppm: int
    after_tokens: int
    after_weight_ppm: int
    after_private_ppm: int


@dataclass(kw_only=True)
class Results:
    """Everything the demo ends with.

    Attributes:
        losses: expert → (step, training loss) points.
        bits: domain → model → bits per byte.
        verdicts: deployment → expert → (verdict, sentence).
        money: one row per expert of the settlement.
        streams: the streams of the withdrawal.
        withdrawn: name of the withdrawn expert.
        withdrawn_at_s: seconds since the first stream was opened.
        proofs: what was checked and held, in order: (claim, evidence).
        timings_s: phase → seconds.
    """

    losses: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    bits: dict[str, dict[str, Bits]] = field(default_factory=dict)
    verdicts: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    money: list[dict[str, Any]] = field(default_factory=list)
    streams: list[StreamTrace] = field(default_factory=list)
    withdrawn: str = ""
    withdrawn_at_s: float = 0.0
    proofs: list[tuple[str, str]] = field(default_factory=list)
    timings_s: dict[str, float] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """JSON-able form, written beside the report."""
        return asdict(self)

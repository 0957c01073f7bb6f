# SPDX-License-Identifier: Apache-2.0
"""What measuring a cell leaves, as plain values that go through JSON, and the rows that follow from it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.report import Row, at_least
from benchmarks.serving.trace import Turn, median_ratio

OURS, GENERATE, BATCH, LLAMA = "ours", "generate", "generate_batch", "llama.cpp"
# Shares of what memory and products allow.
DECODE_BAR = {"fp32": 0.6, "bf16": 0.4, "int8": 0.4}
PREFILL_BAR = {"fp32": 0.85, "bf16": 0.6}
PEER_BAR, PEER_BAR_WITHOUT_COMPILER = 3.0, 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A cell's figures.

    Attributes:
        label: of the cell.
        number_format: of the cell.
        concurrency: of the cell.
        prompt_tokens: of the cell.
        native: whether compiled kernels computed our side.
        turns: side to its counted rounds.
        step_bytes: what one decode step must read.
        touched: experts that a step touches in a layer, on average.
        bandwidth: bytes per second that memory was read with, round by round.
        peak_s: seconds of a prompt's products at their best, where prefill is looked at.
        torch_peak_s: the same with torch's routines alone.
        compared: greedy tokens compared with a peer's.
        level: sequences that part where two tokens were level.
        wrong: sequences that part elsewhere.
        chosen: peer to the implementation of experts that was faster for it.
    """

    label: str
    number_format: str
    concurrency: int
    prompt_tokens: int
    native: bool
    turns: Mapping[str, list[Turn]]
    step_bytes: float
    touched: float
    bandwidth: list[float]
    peak_s: float | None = None
    torch_peak_s: float | None = None
    compared: int = 0
    level: int = 0
    wrong: int = 0
    chosen: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Measured:
        """From what ``to_json`` gave."""
        turns = {side: [Turn(**turn) for turn in found] for side, found in document["turns"].items()}
        return cls(**{**document, "turns": turns})


def rows_of(measured: Measured) -> list[Row]:
    """Every row of a cell."""
    rows = [_decode_row(measured, peer) for peer in (GENERATE, BATCH, LLAMA) if peer in measured.turns]
    rows.append(_memory_row(measured))
    if measured.peak_s is not None:
        rows += _prefill_rows(measured, measured.peak_s)
    if measured.compared:
        rows.append(_agreement_row(measured))
    return rows


def _decode_row(measured: Measured, peer: str) -> Row:
    ours, theirs = ([turn.decode for turn in measured.turns[side]] for side in (OURS, peer))
    ratio = median_ratio(ours, theirs)
    # llama.cpp is shown; Hugging Face is what the bar is about, and without its batch the better one is one.
    bar = None if peer == LLAMA else PEER_BAR if measured.native else PEER_BAR_WITHOUT_COMPILER
    return Row(
        name=f"decode against {peer}, {measured.label}",
        ours=statistics.median(ours),
        peer=statistics.median(theirs),
        ratio=ratio,
        unit="tokens/s",
        bar=None if bar is None else f">= {bar:g}",
        holds=None if bar is None else ratio >= bar,
    )


def _memory_row(measured: Measured) -> Row:
    """Bytes that decoding must read per second, of those that memory was seen to give; best against best."""
    steps = max(turn.decode for turn in measured.turns[OURS]) / measured.concurrency
    read, bound = steps * measured.step_bytes / 1e9, max(measured.bandwidth) / 1e9
    name = f"decode, share of read bandwidth, {measured.label}"
    if measured.concurrency == 1 and measured.native:
        return at_least(name, read, bound, unit="GB/s", bar=DECODE_BAR[measured.number_format])
    return Row(name=name, ours=read, peer=bound, ratio=read / bound, unit="GB/s")


def _prefill_rows(measured: Measured, peak_s: float) -> list[Row]:
    turns = measured.turns
    best = max(turn.prefill for turn in turns[OURS])
    bound = measured.prompt_tokens / peak_s
    bar = PREFILL_BAR.get(measured.number_format)
    name = f"prefill, share of the products' peak, {measured.label}"
    if bar is None or not measured.native:
        rows = [Row(name=name, ours=best, peer=bound, ratio=best / bound, unit="tokens/s")]
    else:
        rows = [at_least(name, best, bound, unit="tokens/s", bar=bar)]
    if measured.torch_peak_s is not None:
        alone = measured.prompt_tokens / measured.torch_peak_s
        name = f"prefill against torch's products alone, {measured.label}"
        rows.append(Row(name=name, ours=best, peer=alone, ratio=best / alone, unit="tokens/s"))
    for peer in (GENERATE, BATCH, LLAMA):
        if peer in turns:
            ours, theirs = ([turn.prefill for turn in turns[side]] for side in (OURS, peer))
            rows.append(
                Row(
                    name=f"prefill against {peer}, {measured.label}",
                    ours=statistics.median(ours),
                    peer=statistics.median(theirs),
                    ratio=median_ratio(ours, theirs),
                    unit="tokens/s",
                )
            )
    return rows


def _agreement_row(measured: Measured) -> Row:
    name = f"greedy texts unlike the peers', {measured.label}"
    if measured.number_format != "fp32":
        parted = measured.level + measured.wrong
        return Row(name=name, ours=parted, peer=measured.compared, unit="texts, of tokens compared")
    return Row(
        name=name,
        ours=measured.wrong,
        peer=measured.compared,
        unit="texts, of tokens compared",
        bar="== 0",
        holds=measured.wrong == 0,
    )

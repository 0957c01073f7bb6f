# SPDX-License-Identifier: Apache-2.0
"""Measures one cell: all its sides take turns on the same prompts, and the bounds are timed among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.serving.agreement import Agreement, compare
from benchmarks.serving.bandwidth import ReadMeter
from benchmarks.serving.case import Cell
from benchmarks.serving.huggingface import EXPERTS
from benchmarks.serving.measured import BATCH, GENERATE, LLAMA, OURS, Measured
from benchmarks.serving.peak import PeakMeter, products
from benchmarks.serving.prompts import prompts_of
from benchmarks.serving.rest import rest, rested
from benchmarks.serving.routes import mean_touched, routes_of
from benchmarks.serving.stage import Stage
from benchmarks.serving.touched import step_bytes
from benchmarks.serving.trace import Trace, Turn, figures, take_turns

# From this prompt length on prefill is held against its bound.
LONG_PROMPT = 1024
_TRIAL_TOKENS = 6
# Which implementation of experts decodes faster depends on how many rows decode, not on how long prompts are.
_TRIAL_PROMPT = 64
# Positions that are run once more to see the routes of a batch.
_ROUTED_POSITIONS = 1 << 14

Side = Callable[[int], Trace]


def measure_cell(
    stage: Stage, cell: Cell, *, peers: Sequence[str], meter: ReadMeter, native: bool
) -> Measured:
    """Lets all sides take turns in a cell.

    Args:
        stage: the sides.
        cell: the setting.
        peers: who takes part beside us.
        meter: of read bandwidth.
        native: whether compiled kernels compute our side.
    """
    chosen = {peer: _faster(stage, cell, peer) for peer in peers if peer in {GENERATE, BATCH}}
    ours = stage.ours(cell)
    bandwidth: list[float] = []

    peak = _peak(stage, cell)

    def our_turn(number: int) -> Trace:
        bandwidth.append(meter.measure())
        if peak is not None:
            peak.measure()
        rest()
        return ours.turn(stage.ask(prompts_of(cell, number)), cell.new_tokens)

    sides: dict[str, Side] = {OURS: our_turn}
    for peer, experts in chosen.items():
        sides[peer] = _huggingface(stage, cell, peer, experts)
    context = None
    if LLAMA in peers:
        context = stage.llama.context(
            sequences=cell.concurrency, positions=cell.prompt_tokens + cell.new_tokens
        )
        held = context
        sides[LLAMA] = lambda number: held.turn(prompts_of(cell, number), cell.new_tokens)
    traces = take_turns({name: rested(side) for name, side in sides.items()}, rounds=cell.rounds)
    if peak is not None:
        peak.measure()
    if context is not None:
        context.close()
    ours.close()
    turns: dict[str, list[Turn]] = {
        name: [figures(trace, prompt_tokens=cell.prompt_tokens) for trace in found]
        for name, found in traces.items()
    }
    agreed = _agreement(stage, cell, traces)
    n_bytes, touched = _bytes(stage, cell, traces[OURS][-1])
    return Measured(
        label=cell.label,
        number_format=cell.number_format,
        concurrency=cell.concurrency,
        prompt_tokens=cell.prompt_tokens,
        native=native,
        turns=turns,
        step_bytes=n_bytes,
        touched=touched,
        bandwidth=bandwidth,
        peak_s=None if peak is None else peak.seconds,
        torch_peak_s=None if peak is None else peak.torch_seconds,
        compared=agreed.compared,
        level=agreed.level,
        wrong=agreed.wrong,
        chosen=chosen,
    )


def _huggingface(stage: Stage, cell: Cell, peer: str, experts: str) -> Side:
    generate = stage.generate if peer == GENERATE else stage.generate_batch
    return lambda number: generate(prompts_of(cell, number), cell.new_tokens, experts)


def _faster(stage: Stage, cell: Cell, peer: str) -> str:
    """The implementation of experts with which a peer decodes faster here."""
    generate = stage.generate if peer == GENERATE else stage.generate_batch
    prompts = [prompt[:_TRIAL_PROMPT] for prompt in prompts_of(cell, 0)]

    def decode(experts: str) -> float:
        trace = generate(prompts, _TRIAL_TOKENS, experts)
        return figures(trace, prompt_tokens=len(prompts[0])).decode

    return max(EXPERTS, key=decode)


def _peak(stage: Stage, cell: Cell) -> PeakMeter | None:
    if cell.concurrency > 1 or cell.prompt_tokens < LONG_PROMPT:
        return None
    prompt = prompts_of(cell, 1)[0]
    route = routes_of(stage.bank, prompt, stage.bank.digests, cell.sizes.top_k)
    rows_LE = route.rows_of(0, len(prompt))
    return PeakMeter(products(cell.sizes, cell.number_format, len(prompt), rows_LE, stage.pool))


def _bytes(stage: Stage, cell: Cell, trace: Trace) -> tuple[float, float]:
    """What a step reads, and how many experts it touches in a layer, in the last round."""
    prompts = prompts_of(cell, cell.rounds)
    seen = max(1, _ROUTED_POSITIONS // cell.prompt_tokens)
    routes = [
        routes_of(stage.bank, [*prompt, *tokens[: cell.new_tokens]], stage.bank.digests, cell.sizes.top_k)
        for prompt, tokens in list(zip(prompts, trace.tokens, strict=True))[:seen]
    ]
    end = cell.prompt_tokens + cell.new_tokens
    touched_LE = mean_touched(routes, begin=cell.prompt_tokens, end=end)
    return step_bytes(stage.bank, cell, touched_LE), float(touched_LE.sum(1).mean())


def _agreement(stage: Stage, cell: Cell, traces: dict[str, list[Trace]]) -> Agreement:
    """Our texts against those of all peers, over all rounds."""
    total = Agreement()
    for peer in traces.keys() - {OURS}:
        for number, (our, their) in enumerate(zip(traces[OURS], traces[peer], strict=True), start=1):
            prompts = prompts_of(cell, number)
            total += compare(stage.bank, prompts, our, their, top_k=cell.sizes.top_k)
    return total

# SPDX-License-Identifier: Apache-2.0
"""How speed changes from 4 to 64 experts while each token still takes k of them.

Alone, and in a long prompt, a token reads or multiplies no more than before. In a batch more experts are
touched; there the time of 4 experts and the time to read the further bytes make up what may be expected. All
of it is compared round by round, read bandwidth too, and the median of the rounds' ratios counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from benchmarks.report import Row
from benchmarks.serving.arithmetic import Arithmetic, Room
from benchmarks.serving.bandwidth import ReadMeter
from benchmarks.serving.case import GROWING, Cell, Sizes
from benchmarks.serving.ours import Ask, Ours
from benchmarks.serving.prompts import prompts_of
from benchmarks.serving.rest import rest
from benchmarks.serving.routes import mean_touched, routes_of
from benchmarks.serving.stage import PREFILL_TOKENS
from benchmarks.serving.touched import step_bytes
from benchmarks.serving.trace import Trace, Turn, figures, median_ratio, take_turns
from benchmarks.serving.worlds import World, make_world
from model_core.network.bank import ExpertBank

COUNTS = (4, 16, 64)
BATCHES = (1, 8, 32)
LONG = 2048
_BAR = 0.85


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """Figures for each number of experts, in the order of ``counts``.

    Attributes:
        counts: numbers of experts.
        decode_s: batch size to seconds of a decode step, of each number of experts the rounds.
        step_bytes: batch size to bytes that a decode step must read.
        prefill: tokens per second of the long prompt, of each number of experts the rounds.
        bandwidth: batch size to bytes per second that memory was read with in each round, the best of the
            measurements before each turn.
    """

    counts: list[int]
    decode_s: dict[str, list[list[float]]]
    step_bytes: dict[str, list[float]]
    prefill: list[list[float]]
    bandwidth: dict[str, list[float]]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def expected_step_s(step_s: float, step_bytes: float, more_bytes: float, bandwidth: float) -> float:
    """A step's time where it must read more.

    Args:
        step_s: a step's time where it reads ``step_bytes``.
        step_bytes: what it reads there.
        more_bytes: what it must read.
        bandwidth: bytes per second.
    """
    return step_s + (more_bytes - step_bytes) / bandwidth


def measure_growth(
    *,
    arithmetic: Arithmetic,
    meter: ReadMeter,
    sizes: Sizes = GROWING,
    counts: tuple[int, ...] = COUNTS,
    batches: tuple[int, ...] = BATCHES,
    long: int = LONG,
    rounds: int = 5,
    new_tokens: int = 24,
) -> Growth:
    """Lets engines over banks of each size take turns; the banks share the experts they have in common."""
    world = make_world(sizes.with_sizes(experts=max(counts)))
    banks = [_first(world, count) for count in counts]
    cell = Cell(sizes=sizes, prompt_tokens=long, new_tokens=2, rounds=rounds)
    turns, _, _ = _take_turns(banks, cell, arithmetic, meter)
    prefill = [[turn.prefill for turn in found] for found in turns]
    decode_s: dict[str, list[list[float]]] = {}
    n_bytes: dict[str, list[float]] = {}
    bandwidth: dict[str, list[float]] = {}
    for batch in batches:
        cell = Cell(sizes=sizes, concurrency=batch, new_tokens=new_tokens, rounds=rounds)
        turns, last, bandwidth[str(batch)] = _take_turns(banks, cell, arithmetic, meter)
        decode_s[str(batch)] = [[batch / turn.decode for turn in found] for found in turns]
        n_bytes[str(batch)] = [_bytes(bank, cell, trace) for bank, trace in zip(banks, last, strict=True)]
    return Growth(
        counts=list(counts),
        decode_s=decode_s,
        step_bytes=n_bytes,
        prefill=prefill,
        bandwidth=bandwidth,
    )


def _first(world: World, count: int) -> ExpertBank:
    bank = ExpertBank(f"sha256:{count:064x}", world.decoder)
    for digest in list(world.experts)[: count - 1]:
        bank.add(digest, world.experts[digest])
    return bank


def _take_turns(
    banks: list[ExpertBank], cell: Cell, arithmetic: Arithmetic, meter: ReadMeter
) -> tuple[list[list[Turn]], list[Trace], list[float]]:
    """For each bank the figures of its rounds, and its last round; and the rounds' bandwidths."""
    engines = [_engine(bank, cell, arithmetic) for bank in banks]
    best: dict[int, float] = {}

    def turn(engine: Ours, bank: ExpertBank, number: int) -> Trace:
        best[number] = max(best.get(number, 0.0), meter.measure())
        rest()
        asks = [Ask(prompt=prompt, experts=bank.digests) for prompt in prompts_of(cell, number)]
        return engine.turn(asks, cell.new_tokens)

    sides = {
        str(place): partial(turn, engine, bank)
        for place, (engine, bank) in enumerate(zip(engines, banks, strict=True))
    }
    traces = take_turns(sides, rounds=cell.rounds)
    for engine in engines:
        engine.close()
    turns = [
        [figures(trace, prompt_tokens=cell.prompt_tokens) for trace in found] for found in traces.values()
    ]
    bandwidth = [best[number] for number in range(1, cell.rounds + 1)]
    return turns, [found[-1] for found in traces.values()], bandwidth


def _engine(bank: ExpertBank, cell: Cell, arithmetic: Arithmetic) -> Ours:
    return Ours(
        bank,
        arithmetic=arithmetic,
        room=Room(
            sequences=cell.concurrency,
            context=cell.prompt_tokens + cell.new_tokens + 64,
            prefill_tokens=max(PREFILL_TOKENS, cell.prompt_tokens),
        ),
        top_k=cell.sizes.top_k,
    )


def _bytes(bank: ExpertBank, cell: Cell, trace: Trace) -> float:
    prompts = prompts_of(cell, cell.rounds)
    routes = [
        routes_of(bank, [*prompt, *tokens[: cell.new_tokens]], bank.digests, cell.sizes.top_k)
        for prompt, tokens in zip(prompts, trace.tokens, strict=True)
    ]
    end = cell.prompt_tokens + cell.new_tokens
    return step_bytes(bank, cell, mean_touched(routes, begin=cell.prompt_tokens, end=end))


def rows_of_growth(found: Growth) -> list[Row]:
    """Rows: the most experts against the fewest, or against what reading them may take."""
    first, last = found.counts[0], found.counts[-1]
    span = f"{last} experts against {first}"
    rows = [_row(f"prefill of {LONG:,} tokens, {span}", found.prefill[-1], found.prefill[0])]
    for batch, rounds_s in sorted(found.decode_s.items(), key=lambda item: int(item[0])):
        n_bytes, few_s, many_s = found.step_bytes[batch], rounds_s[0], rounds_s[-1]
        name, expected_s = f"decode alone, {span}", few_s
        if batch != "1":
            name = f"decode of {batch}, {last} experts against what their bytes allow"
            expected_s = [
                expected_step_s(step_s, n_bytes[0], n_bytes[-1], bandwidth)
                for step_s, bandwidth in zip(few_s, found.bandwidth[batch], strict=True)
            ]
        ours, bound = ([int(batch) / step_s for step_s in steps_s] for steps_s in (many_s, expected_s))
        rows.append(_row(name, ours, bound))
    return rows


def _row(name: str, ours: Sequence[float], bound: Sequence[float]) -> Row:
    """Tokens per second of the rounds against those that may be expected."""
    ratio = median_ratio(ours, bound)
    return Row(
        name=name,
        ours=statistics.median(ours),
        peer=statistics.median(bound),
        ratio=ratio,
        unit="tokens/s",
        bar=f">= {_BAR:g}",
        holds=ratio >= _BAR,
    )

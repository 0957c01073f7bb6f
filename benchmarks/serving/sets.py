# SPDX-License-Identifier: Apache-2.0
"""What it costs that sixteen sequences of one batch have sixteen different expert sets.

Different sets choose different experts, and then other weights are read; that is no cost of mixing sets. So
beside the experts there are some whose bias is so low that their weight is exactly zero: a set with any of
them computes the same tokens with the same experts as one without. Sixteen sets that differ in those alone
are compared with their union as one set: same tokens, same distinct experts in every layer, no common
prefix.

A second figure tells what happens where sets choose differently: the union's time, with the weights that a
step then touches in addition or less.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.report import Row, at_least
from benchmarks.serving.arithmetic import Arithmetic, Room
from benchmarks.serving.case import Cell, Sizes
from benchmarks.serving.ours import Ask, Ours
from benchmarks.serving.prompts import prompts_of
from benchmarks.serving.routes import mean_touched, routes_of
from benchmarks.serving.stage import PREFILL_TOKENS
from benchmarks.serving.trace import Trace, figures, median_ratio, take_turns
from benchmarks.serving.worlds import World, make_world
from model_core.network.bank import ExpertBank

SEQUENCES = 16
SETS, UNION, DIFFERENT = "sixteen sets", "their union", "sixteen sets that choose differently"
_SILENT = 4
_NEVER = -1e4
_BAR = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedSets:
    """Figures of the comparison.

    Attributes:
        label: of the cell.
        decode: tokens per second of each side, round by round.
        touched: experts that a step touches in a layer, of each side.
        same_tokens: whether the sixteen sets and their union gave the same tokens in every round.
    """

    label: str
    decode: dict[str, list[float]]
    touched: dict[str, float]
    same_tokens: bool

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def silent_world(sizes: Sizes) -> tuple[World, list[str]]:
    """A world of ``sizes.experts`` and four more that never weigh anything; and those four's digests."""
    world = make_world(sizes.with_sizes(experts=sizes.experts + _SILENT))
    silent = sorted(world.experts)[1 :: sizes.experts // _SILENT][:_SILENT]
    with torch.no_grad():
        for digest in silent:
            for index in range(sizes.layers):
                bias = world.experts[digest].layer(index).router.bias
                assert bias is not None  # noqa: S101  (experts have one)
                bias.fill_(_NEVER)
    return world, silent


def sixteen_sets(bank: ExpertBank, silent: list[str]) -> list[tuple[str, ...]]:
    """All audible experts, and each subset of the silent ones."""
    audible = tuple(digest for digest in bank.digests if digest not in silent)
    subsets = itertools.chain.from_iterable(
        itertools.combinations(silent, count) for count in range(len(silent) + 1)
    )
    return [audible + subset for subset in subsets]


def sets_that_differ(bank: ExpertBank, silent: list[str]) -> list[tuple[str, ...]]:
    """Sixteen different halves of the audible experts."""
    audible = [digest for digest in bank.digests if digest not in silent]
    halves = list(itertools.combinations(audible, (len(audible) + 1) // 2))
    return halves[:: len(halves) // SEQUENCES][:SEQUENCES]


def measure_sets(sizes: Sizes, *, arithmetic: Arithmetic, new_tokens: int = 32, rounds: int = 5) -> MixedSets:
    """Lets the three batches take turns in one engine."""
    world, silent = silent_world(sizes)
    bank = world.bank()
    cell = Cell(sizes=sizes, concurrency=SEQUENCES, prompt_tokens=64, new_tokens=new_tokens, rounds=rounds)
    engine = Ours(
        bank,
        arithmetic=arithmetic,
        room=Room(
            sequences=SEQUENCES,
            context=cell.prompt_tokens + new_tokens + 2 * SEQUENCES,
            prefill_tokens=PREFILL_TOKENS,
        ),
        top_k=sizes.top_k,
    )
    allowed = {
        SETS: sixteen_sets(bank, silent),
        UNION: [bank.digests] * SEQUENCES,
        DIFFERENT: sets_that_differ(bank, silent),
    }

    def turn(side: str, number: int) -> Trace:
        asks = [
            Ask(prompt=prompt, experts=experts)
            for prompt, experts in zip(prompts_of(cell, number), allowed[side], strict=True)
        ]
        return engine.turn(asks, new_tokens)

    sides = {side: partial(turn, side) for side in allowed}
    traces: dict[str, list[Trace]] = take_turns(sides, rounds=rounds)
    engine.close()
    decode = {
        side: [figures(trace, prompt_tokens=cell.prompt_tokens).decode for trace in found]
        for side, found in traces.items()
    }
    same = all(
        our[:new_tokens] == their[:new_tokens]
        for one, other in zip(traces[SETS], traces[UNION], strict=True)
        for our, their in zip(one.tokens, other.tokens, strict=True)
    )
    touched = {side: _touched(bank, cell, traces[side][-1], allowed[side]) for side in allowed}
    return MixedSets(label=cell.label, decode=decode, touched=touched, same_tokens=same)


def _touched(bank: ExpertBank, cell: Cell, trace: Trace, sets: list[tuple[str, ...]]) -> float:
    prompts = prompts_of(cell, cell.rounds)
    routes = [
        routes_of(bank, [*prompt, *tokens[: cell.new_tokens]], experts, cell.sizes.top_k)
        for prompt, tokens, experts in zip(prompts, trace.tokens, sets, strict=True)
    ]
    end = cell.prompt_tokens + cell.new_tokens
    return float(mean_touched(routes, begin=cell.prompt_tokens, end=end).sum(1).mean())


def rows_of_sets(found: MixedSets) -> list[Row]:
    """Rows of the comparison."""
    decode = found.decode
    bare = at_least(
        f"decode, {SETS} against {UNION}, {found.label}",
        median_ratio(decode[SETS], decode[UNION]),
        1.0,
        unit="of its tokens/s",
        bar=_BAR,
    )
    rows = [
        bare,
        Row(
            name=f"the same tokens in both, {found.label}",
            ours=float(found.same_tokens),
            unit="1 is yes",
            bar="== 1",
            holds=found.same_tokens,
        ),
        Row(
            name=f"decode, {DIFFERENT} against {UNION}, {found.label}",
            ours=median_ratio(decode[DIFFERENT], decode[UNION]),
            unit="of its tokens/s",
        ),
    ]
    rows += [
        Row(name=f"experts that a step touches in a layer, {side}", ours=found.touched[side], unit="experts")
        for side in (SETS, UNION, DIFFERENT)
    ]
    return rows

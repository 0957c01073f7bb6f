# SPDX-License-Identifier: Apache-2.0
"""Sequences that drive a runner without an engine: pages from a list, pieces as a test cuts them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model_core.engine.native.library import Library
from model_core.engine.native.step import NativeRunner
from model_core.engine.runner import Piece
from model_core.network.bank import ExpertBank, forward_logits


@dataclass
class Walk:
    """One sequence on its way through a runner.

    Attributes:
        ids: its tokens.
        experts: what may compute it.
        columns: their columns.
        top_k: experts per token.
        tail: place of its prefix sums.
        pages: its pages, enough for all tokens.
        at: positions that count.
        logits: of the last position of each piece, by position.
        shares: the same.
    """

    ids: Sequence[int]
    experts: Sequence[str]
    columns: tuple[int, ...]
    top_k: int
    tail: int
    pages: Sequence[int]
    at: int = 0
    logits: dict[int, Tensor] = field(default_factory=dict)
    shares: dict[int, Tensor] = field(default_factory=dict)

    def piece(self, length: int) -> Piece:
        """The next positions."""
        end = min(len(self.ids), self.at + length)
        return Piece(
            ids=self.ids[self.at : end],
            start=self.at,
            pages=self.pages[: -(-end // 16)],
            tail=self.tail,
            columns=self.columns,
            top_k=self.top_k,
        )

    @property
    def done(self) -> bool:
        """Whether all positions count."""
        return self.at == len(self.ids)


def runner_of(bank: ExpertBank, library: Library, **changes: Any) -> NativeRunner:
    """Sixty-four pages and eight places, one thread."""
    return NativeRunner(bank, library, **({"n_pages": 64, "n_tails": 8, "threads": 1} | changes))


class Pages:
    """Page numbers in random order, each given out once.

    Args:
        runner: whose.
        pick: source of the order.
    """

    def __init__(self, runner: NativeRunner, pick: random.Random) -> None:
        self.free = list(range(runner.n_pages))
        pick.shuffle(self.free)
        self.tails = list(range(runner.n_tails))

    def walk(
        self, bank: ExpertBank, runner: NativeRunner, ids: Sequence[int], experts: Sequence[str], k: int
    ) -> Walk:
        """A sequence that has computed nothing yet."""
        tail = self.tails.pop()
        runner.begin(tail, None)
        pages = [self.free.pop() for _ in range(-(-len(ids) // 16))]
        return Walk(ids, experts, bank.columns(experts), k, tail, pages)


def advance(runner: NativeRunner, walks: Sequence[Walk], lengths: Sequence[int]) -> None:
    """Computes a piece of each and keeps it."""
    pieces = [walk.piece(length) for walk, length in zip(walks, lengths, strict=True)]
    result = runner.run(pieces)
    runner.keep([(walk.tail, index) for index, walk in enumerate(walks)])
    for index, (walk, piece) in enumerate(zip(walks, pieces, strict=True)):
        walk.at += len(piece.ids)
        walk.logits[walk.at - 1] = result.logits_BV[index]
        walk.shares[walk.at - 1] = result.shares_BE[index]


def finish(runner: NativeRunner, walk: Walk, lengths: Sequence[int] = ()) -> Walk:
    """Computes a sequence alone, in pieces of these lengths and then the rest at once."""
    for length in (*lengths, len(walk.ids)):
        if not walk.done:
            advance(runner, [walk], [length])
    return walk


def largest_difference(bank: ExpertBank, walk: Walk) -> float:
    """Between what a walk saw and the whole model without any cache."""
    expected_SV = forward_logits(bank, walk.ids, walk.experts, walk.top_k).float()
    return max(float((row - expected_SV[at]).abs().max()) for at, row in walk.logits.items())


def same_bits(one: Walk, other: Walk) -> bool:
    """Whether logits and shares agree bit for bit wherever both were computed."""
    shared = one.logits.keys() & other.logits.keys()
    return bool(shared) and all(
        torch.equal(one.logits[at], other.logits[at]) and torch.equal(one.shares[at], other.shares[at])
        for at in shared
    )

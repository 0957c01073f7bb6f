# SPDX-License-Identifier: Apache-2.0
"""What the engine asks of whoever computes a step: the contract between scheduling and arithmetic.

The engine decides which positions of which sequences are computed, in which pages their keys and values
stand, and which experts each may use. A runner computes exactly that. Runners own the memory of keys,
values and prefix sums in a layout of their own; the engine knows pages by number only.

A step writes beyond what counts: keys, values and the sums of full pages of the computed positions. Computing
a step again writes the same there. The prefix sums of a sequence's last position (its tail) are carried from
step to step only once ``keep`` was called, so a discarded step leaves every state as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from model_core.network.expert import Expert


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Consecutive positions of one sequence that a step computes.

    Attributes:
        ids: token ids of the positions, at least one.
        start: first position.
        pages: page numbers of positions 0 to ``start + len(ids) - 1``, in order; those of the computed
            positions belong to this sequence alone, earlier ones may be shared.
        tail: place of the sequence's prefix sums.
        columns: columns of the bank that may compute the piece, ascending, the public expert's 0 first.
        top_k: experts per token, the public one counted; between 1 and ``len(columns)``.
    """

    ids: Sequence[int] = field(repr=False)
    start: int
    pages: Sequence[int]
    tail: int
    columns: tuple[int, ...]
    top_k: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Likeliest:
    """What most draws need of a step, as plain numbers: nobody has to run over its logits again.

    Attributes:
        tokens_B: the first of each row's largest logits; -1 where they are not all finite.
        log_totals_B: natural logarithm of the sum of ``exp(logit - largest)`` of each row.
        ppm_BE: shares in parts per million by column, flat, row after row; by largest remainder.
    """

    tokens_B: Sequence[int] = field(repr=False)
    log_totals_B: Sequence[float]
    ppm_BE: Sequence[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a step leaves, a row for each piece's last position.

    Attributes:
        logits_BV: logits, fp32.
        shares_BE: routing weight per column of the bank, normalised per layer, averaged over layers; fp64.
        likeliest: what follows from them, where the runner has computed that too.
    """

    logits_BV: Tensor
    shares_BE: Tensor
    likeliest: Likeliest | None = None


class Runner(Protocol):
    """Computes steps over one bank.

    Attributes:
        page_size: positions in a page.
        n_pages: pages there are; the numbers 0 to ``n_pages - 1``.
        n_tails: places for prefix sums; the numbers 0 to ``n_tails - 1``.
        row_exact: no bit of a row depends on the other rows of its step, on how a prompt was cut into
            pieces, or on which of its pages were reused.
    """

    page_size: int
    n_pages: int
    n_tails: int
    row_exact: bool

    def run(self, pieces: Sequence[Piece]) -> StepResult:
        """Computes pieces in one batch; nothing counts until ``keep``.

        Weights of experts outside a piece's ``columns`` are never multiplied for it.
        """
        ...

    def keep(self, tails: Sequence[tuple[int, int]]) -> None:
        """Makes prefix sums of the last step count.

        Args:
            tails: (place, index of the piece in the last ``run``).
        """
        ...

    def begin(self, tail: int, page: int | None) -> None:
        """Sets a tail to the prefix sums at the end of a full page, or to zero (None)."""
        ...

    def erase(self, pages: Sequence[int], tails: Sequence[int] = ()) -> None:
        """Overwrites pages and tails: nothing of what was computed into them remains in memory."""
        ...

    def prepare(self, digest: str, expert: Expert) -> None:
        """Derives from an expert, before the bank takes it in, what ``refresh`` would have to derive.

        Any thread may call it while steps run. Whoever does not leaves that work to ``refresh``.
        """
        ...

    def refresh(self) -> None:
        """Takes over what the bank holds now; called after every change of it.

        An expert that the bank has poisoned is filled with NaN in every copy that the runner multiplies, and
        one that it has removed is let go.
        """
        ...

    def size_bytes(self) -> int:
        """Memory of pages, tails and scratch space."""
        ...

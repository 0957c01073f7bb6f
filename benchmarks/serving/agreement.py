# SPDX-License-Identifier: Apache-2.0
"""Whether two sides said the same: greedy tokens up to their first difference, and how close the choice was.

Sums of another order can turn a token only where the two likeliest are all but level. So a first difference
is excused where, by a run of the whole sequence apart from the engine, the two logits differ by at most the
margin; what follows it is another text and is not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.serving.trace import Trace
from model_core.network.bank import ExpertBank, forward_logits

MARGIN = 2e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How two turns over the same prompts compare.

    Attributes:
        compared: tokens looked at.
        level: first differences where the two likeliest tokens were level.
        wrong: first differences where they were not.
    """

    compared: int = 0
    level: int = 0
    wrong: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        """Both together."""
        return Agreement(
            compared=self.compared + other.compared,
            level=self.level + other.level,
            wrong=self.wrong + other.wrong,
        )


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Place of the first token that differs, within the length of the shorter; None if there is none."""
    pairs = zip(ours, theirs, strict=False)
    return next((place for place, (our, their) in enumerate(pairs) if our != their), None)


def compare(
    bank: ExpertBank, prompts: Sequence[Sequence[int]], ours: Trace, theirs: Trace, *, top_k: int
) -> Agreement:
    """Compares two turns in which every expert of the bank was allowed."""
    total = Agreement()
    for prompt, our, their in zip(prompts, ours.tokens, theirs.tokens, strict=True):
        place = first_difference(our, their)
        if place is None:
            total += Agreement(compared=min(len(our), len(their)))
            continue
        logits_V = forward_logits(bank, [*prompt, *our[:place]], bank.digests, top_k)[-1].float()
        level = abs(float(logits_V[our[place]] - logits_V[their[place]])) <= MARGIN
        total += Agreement(compared=place + 1, level=int(level), wrong=int(not level))
    return total

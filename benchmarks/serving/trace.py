# SPDX-License-Identifier: Apache-2.0
"""What one turn of a side left behind, and the figures that follow from it. Pure arithmetic on moments.

Sides differ in when they start which sequence. So decoding is looked at only while every sequence decodes:
from the moment when the last of them has its first token to the moment when the first of them has its last.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """One turn.

    Attributes:
        began_s: when the side was given the prompts.
        moments_s: of each sequence, when each of its new tokens was known; ascending.
        tokens: the new tokens of each sequence.
    """

    began_s: float
    moments_s: tuple[tuple[float, ...], ...]
    tokens: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """The figures of one turn.

    Attributes:
        decode: new tokens per second, all sequences together, while all of them decode.
        prefill: prompt tokens per second until every sequence has its first token.
        first_s: from the start until every sequence has its first token.
    """

    decode: float
    prefill: float
    first_s: float


def figures(trace: Trace, *, prompt_tokens: int) -> Turn:
    """The figures of a turn over prompts of one length.

    Raises:
        ValueError: there is no moment at which all sequences decode.
    """
    begin, end = window(trace)
    known = sum(1 for moments in trace.moments_s for moment in moments if begin < moment <= end)
    first_s = begin - trace.began_s
    return Turn(
        decode=known / (end - begin), prefill=prompt_tokens * len(trace.moments_s) / first_s, first_s=first_s
    )


def window(trace: Trace) -> tuple[float, float]:
    """From when to when every sequence decodes.

    Raises:
        ValueError: never.
    """
    begin = max(moments[0] for moments in trace.moments_s)
    end = min(moments[-1] for moments in trace.moments_s)
    if end <= begin:
        raise ValueError("There is no moment at which all sequences decode; ask for more new tokens.")
    return begin, end


def take_turns(sides: Mapping[str, Callable[[int], _T]], *, rounds: int) -> dict[str, list[_T]]:
    """Lets every side do each round before the next round begins; a first one is not counted.

    Who is first moves on by one each round, so that nobody always follows the same neighbour.

    Args:
        sides: name to what does one turn, given the round's number.
        rounds: counted rounds.
    """
    names = list(sides)
    taken: dict[str, list[_T]] = {name: [] for name in names}
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            result = sides[name](number)
            if number:
                taken[name].append(result)
    return taken


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios: what slows a round down slows both of its sides."""
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))

# SPDX-License-Identifier: Apache-2.0
"""How long clients waited between one arrival of tokens of a stream and the next."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator

from examples.storm.streams import Answer


def median_gap_ms(answers: list[Answer]) -> float:
    """Median gap between two arrivals of a stream, over all streams."""
    return statistics.median(gap for answer in answers for _, _, gap in _gaps(answer))


def largest_gap_ms(answers: list[Answer], from_us: int, to_us: int) -> float:
    """Largest gap of any stream that lies in a stretch of time, wholly or in part."""
    within = (
        gap
        for answer in answers
        for earlier_us, later_us, gap in _gaps(answer)
        if later_us >= from_us and earlier_us <= to_us
    )
    return max(within, default=0.0)


def _gaps(answer: Answer) -> Iterator[tuple[int, int, float]]:
    # Tokens that arrive together are one arrival: nobody waited between them.
    for earlier_us, later_us in itertools.pairwise(sorted(set(answer.arrivals_us))):
        yield earlier_us, later_us, (later_us - earlier_us) / 1000

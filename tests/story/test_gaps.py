# SPDX-License-Identifier: Apache-2.0
"""What is said about streams that wait is said of each stream by itself."""

from __future__ import annotations

from examples.storm.gaps import largest_gap_ms, median_gap_ms
from examples.storm.streams import Answer


def test_gaps_are_those_of_one_stream_within_a_stretch_of_time() -> None:
    """Neither pauses between streams nor tokens that come together count; stretches hold what reaches in."""
    first = Answer(endpoint="a", arrivals_us=[0, 10_000, 10_000, 10_000, 10_000, 20_000, 90_000])
    second = Answer(endpoint="b", arrivals_us=[500_000, 510_000, 520_000, 530_000])
    answers = [first, second]
    assert median_gap_ms(answers) == 10.0
    assert largest_gap_ms(answers, 0, 15_000) == 10.0
    assert largest_gap_ms(answers, 50_000, 60_000) == 70.0
    assert largest_gap_ms(answers, 100_000, 400_000) == 0.0
    assert largest_gap_ms(answers, 0, 600_000) == 70.0

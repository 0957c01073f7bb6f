# SPDX-License-Identifier: Apache-2.0
"""Draws follow their distribution, seed and row; shares round to exactly one token."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.engine.attribution import to_ppm
from model_core.engine.requests import Sampling
from model_core.engine.sampling import draw, uniform

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])


def frequencies(sampling: Sampling, n: int = 20_000) -> torch.Tensor:
    """How often each token is drawn with the seeds 0 to n - 1."""
    uniforms = [uniform(seed, "", 0) for seed in range(n)]
    drawn = draw(LOGITS.repeat(n, 1), [sampling] * n, uniforms)
    return torch.bincount(drawn, minlength=5).double() / n


def test_draws_follow_temperature_top_k_and_top_p() -> None:
    """Frequencies over 20,000 seeds are within 0.012 of the distribution that the settings describe."""
    plain = torch.softmax(LOGITS.double(), -1)
    assert torch.allclose(frequencies(Sampling()), plain, atol=0.012)
    cold = torch.softmax(LOGITS.double() / 0.5, -1)
    assert torch.allclose(frequencies(Sampling(temperature=0.5)), cold, atol=0.012)
    two = torch.cat((plain[:2] / plain[:2].sum(), torch.zeros(3, dtype=torch.float64)))
    assert torch.allclose(frequencies(Sampling(top_k=2)), two, atol=0.012)
    # The first two tokens hold 0.74: 0.7 needs both, 0.5 only the first.
    assert torch.allclose(frequencies(Sampling(top_p=0.7)), two, atol=0.012)
    assert frequencies(Sampling(top_p=0.5), 100)[0] == 1.0
    assert frequencies(Sampling(top_k=1), 100)[0] == 1.0
    assert frequencies(Sampling(temperature=0.0), 100)[0] == 1.0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 8), data=st.data())
def test_a_row_draws_the_same_whatever_its_neighbours_ask_for(seed: int, n: int, data: st.DataObject) -> None:
    """Settings of other rows, and their number, change nothing."""
    logits = torch.randn(n, 37, generator=torch.Generator().manual_seed(seed))
    asked = [
        Sampling(
            temperature=data.draw(st.sampled_from([0.0, 0.3, 1.0, 2.0])),
            top_p=data.draw(st.sampled_from([1.0, 0.9, 0.2])),
            top_k=data.draw(st.sampled_from([0, 1, 7])),
        )
        for _ in range(n)
    ]
    uniforms = [uniform(seed, "r", row) for row in range(n)]
    together = draw(logits, asked, uniforms).tolist()
    alone = [int(draw(logits[row : row + 1], [asked[row]], [uniforms[row]])[0]) for row in range(n)]
    assert together == alone


def test_extreme_uniforms_stay_inside_the_kept_tokens() -> None:
    """The smallest and the largest possible number never draw a token that was cut."""
    largest = (2**52 - 1) / 2**52
    sampling = Sampling(top_k=2)
    assert draw(LOGITS.repeat(2, 1), [sampling] * 2, [0.0, largest]).tolist() == [0, 1]
    assert draw(LOGITS.repeat(2, 1), [Sampling()] * 2, [0.0, largest]).tolist() == [0, 4]
    assert all(0.0 <= uniform(None, f"r{i}", i) <= largest for i in range(1000))
    assert uniform(None, "a", 0) != uniform(None, "b", 0)
    assert uniform(3, "a", 0) == uniform(3, "b", 0) != uniform(3, "a", 1)


@settings(max_examples=60, deadline=None)
@given(
    shares=st.lists(
        st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda row: sum(row) > 1e-3),
        min_size=1,
        max_size=5,
    )
)
def test_shares_round_to_exactly_one_million(shares: list[list[float]]) -> None:
    """Every row sums to one token, off by less than one millionth each; nothing without share is named."""
    matrix = np.array(shares)
    for row, ppm in zip(matrix, to_ppm(matrix, ("public", "a", "b")), strict=True):
        assert sum(ppm.values()) == 1_000_000
        for name, share in zip(("public", "a", "b"), row / row.sum() * 1e6, strict=True):
            assert abs(ppm.get(name, 0) - share) < 1 + 1e-6
            assert share > 0 or name not in ppm


def test_ties_of_remainders_go_to_the_earlier_column() -> None:
    """A third each: the first one gets the odd millionth."""
    assert to_ppm(np.ones((1, 3)), ("x", "y", "z")) == [{"x": 333_334, "y": 333_333, "z": 333_333}]

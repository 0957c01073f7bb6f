# SPDX-License-Identifier: Apache-2.0
"""Draws follow their distribution, seed and row; shares round to exactly one token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.engine.attribution import to_ppm
from model_core.engine.requests import Sampling
from model_core.engine.sampling import adjust, draw, log_probabilities, uniform

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


def drawn_by_sorting(logits_V: torch.Tensor, sampling: Sampling, number: float) -> int:
    """One draw as the settings describe it: the whole vocabulary sorted, in fp64."""
    chances_V, order_V = torch.softmax(logits_V.double() / sampling.temperature, -1).sort(
        descending=True, stable=True
    )
    before_V = chances_V.cumsum(0) - chances_V
    kept_V = (before_V < sampling.top_p) | (sampling.top_p == 1)
    kept_V &= torch.arange(len(kept_V)) < (sampling.top_k or len(kept_V))
    kept_V[0] = True
    reached_V = chances_V.where(kept_V, 0.0).cumsum(0)
    return int(order_V[torch.searchsorted(reached_V, number * reached_V[-1], right=True)])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.01, 1.0, 4.0]),
    ties=st.booleans(),
    top_p=st.sampled_from([1.0, 0.99, 0.6, 0.05]),
    top_k=st.sampled_from([0, 1, 40, 600]),
)
def test_a_large_vocabulary_is_cut_as_if_it_were_sorted_whole(
    seed: int, spread: float, ties: bool, top_p: float, top_k: int
) -> None:
    """Few or many tokens kept, many of them equally likely: the same tokens as from a full sort."""
    logits = spread * torch.randn(4, 1500, generator=torch.Generator().manual_seed(seed))
    if ties:
        logits = (2 * logits).round() / 2
    sampling = Sampling(temperature=0.8, top_p=top_p, top_k=top_k)
    uniforms = [uniform(seed, "r", row) for row in range(4)]
    if top_p == 1.0 and top_k == 0:  # the plain draw walks through token ids, not through a sorted list
        expected = draw(logits, [sampling] * 4, uniforms).tolist()
        chances = torch.softmax(logits.double() / 0.8, -1).cumsum(-1)
        found = torch.searchsorted(chances, torch.tensor(uniforms, dtype=torch.float64)[:, None], right=True)
        assert found.squeeze(-1).tolist() == expected
        return
    drawn = draw(logits, [sampling] * 4, uniforms).tolist()
    assert drawn == [drawn_by_sorting(logits[row], sampling, uniforms[row]) for row in range(4)]


def test_biases_and_penalties_move_their_own_row_alone() -> None:
    """A bias of -100 forbids, penalties weigh what was drawn before, and other rows are not touched."""
    logits = LOGITS.repeat(4, 1)
    asked = [
        Sampling(),
        Sampling(logit_bias=((0, -100.0), (4, 3.0))),
        Sampling(presence_penalty=1.0),
        Sampling(presence_penalty=0.5, frequency_penalty=0.25),
    ]
    moved = adjust(logits, asked, [(), (), (0, 0, 1), (0, 0, 1)])
    assert torch.equal(logits, LOGITS.repeat(4, 1))
    assert torch.equal(moved[0], LOGITS)
    assert moved[1].tolist() == [-98.0, 1.0, 0.5, 0.0, 2.0]
    assert moved[2].tolist() == [1.0, 0.0, 0.5, 0.0, -1.0]
    assert moved[3].tolist() == [1.0, 0.25, 0.5, 0.0, -1.0]
    assert adjust(logits, [Sampling()] * 4, [()] * 4) is logits


def test_log_probabilities_are_those_of_the_unchanged_logits() -> None:
    """Own and best alternatives per row, as many as asked for; temperature and biases do not show."""
    own, best = log_probabilities(
        LOGITS.repeat(2, 1), torch.tensor([1, 0]), [Sampling(logprobs=2), Sampling(temperature=0.0)]
    )
    expected = torch.log_softmax(LOGITS, -1)
    assert own == pytest.approx([float(expected[1]), float(expected[0])])
    assert [token for token, _ in best[0]] == [0, 1]
    assert best[1] == ()

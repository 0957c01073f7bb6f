# SPDX-License-Identifier: Apache-2.0
"""What the compiled step tells of its logits and shares, and what tokens follow from it."""

from __future__ import annotations

import ctypes
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from step_builders import Pages, finish, largest_difference, runner_of
from tensor_builders import bank_of, prompt, random_world, request
from torch import Tensor

from model_core.engine.attribution import to_ppm
from model_core.engine.engine import Engine
from model_core.engine.native.library import Library, Pool
from model_core.engine.native.panels import pack_matrix
from model_core.engine.runner import StepResult
from model_core.errors import TensorsNotFinite
from model_core.network.bank import ExpertBank


def computed(bank: ExpertBank, library: Library, seed: int, rows: int, threads: int) -> StepResult:
    """A step of some prompts."""
    runner = runner_of(bank, library, threads=threads)
    pages = Pages(runner, random.Random(seed))
    walks = [pages.walk(bank, runner, prompt(seed + row, 9), bank.digests, 2) for row in range(rows)]
    return runner.run([walk.piece(9) for walk in walks])


@settings(max_examples=12, deadline=None)
@given(vocabulary=st.sampled_from([96, 1024, 1040, 2101]), seed=st.integers(0, 99), threads=st.integers(1, 3))
def test_what_a_step_tells_is_what_its_logits_say(
    library: Library, vocabulary: int, seed: int, threads: int
) -> None:
    """The first of the largest, the logarithm of the sum, and shares by largest remainder."""
    bank = bank_of(*random_world(seed, 3, vocab_size=vocabulary))
    result = computed(bank, library, seed, 3, threads)
    told = result.likeliest
    assert told is not None
    logits_BV = result.logits_BV.double()
    assert list(told.tokens_B) == logits_BV.numpy().argmax(-1).tolist()
    wanted_B = (logits_BV - logits_BV.amax(-1, keepdim=True)).exp().sum(-1).log()
    assert torch.allclose(torch.tensor(list(told.log_totals_B)), wanted_B.to(torch.float32), atol=1e-5)
    names = bank.names()
    for row, ppm in enumerate(to_ppm(result.shares_BE.numpy(), names)):
        found = told.ppm_BE[row * len(names) : (row + 1) * len(names)]
        assert {name: own for name, own in zip(names, found, strict=True) if own} == ppm


@st.composite
def shares_of_a_row(draw: st.DrawFn) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Sums of layers' weights, equal ones and zeros among them, up to several hundred."""
    n = draw(st.one_of(st.integers(1, 20), st.integers(1, 300)))
    pick = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shares_E = pick.random(n) ** draw(st.sampled_from([0, 1, 8]))
    shares_E = np.where(pick.random(n) < draw(st.sampled_from([0.0, 0.5, 0.95])), 0.0, shares_E)
    shares_E[pick.integers(n)] = draw(st.sampled_from([1e-9, 0.5, 1.0, 3.0]))
    if draw(
        st.booleans()
    ):  # whole and half millionths: the last bit of the sum decides who gets what is missing
        shares_E = np.floor(shares_E / shares_E.sum() * 2e6)
        shares_E[shares_E.argmax()] += 2e6 - shares_E.sum()
    return shares_E / draw(st.sampled_from([1.0, 3.0, 16.0, 2e6, shares_E.sum()]))


@settings(max_examples=400, deadline=None)
@given(shares_E=shares_of_a_row())
def test_shares_in_millionths_are_those_of_numpy(
    library: Library, shares_E: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
) -> None:
    """Attribution is money: every column gets the same count on every path, for any number of columns."""
    names = [str(column) for column in range(len(shares_E))]
    ppm_E = np.full(len(shares_E), -1, dtype=np.int32)
    library.calls.experts_shares_ppm(shares_E.ctypes.data, len(shares_E), ppm_E.ctypes.data)
    assert ppm_E.sum() == 1_000_000
    found = {name: count for name, count in zip(names, ppm_E.tolist(), strict=True) if count}
    assert [found] == to_ppm(shares_E[None], names)


def likeliest_of(library: Library, logits_V: Tensor) -> tuple[int, float]:
    """Token and logarithm that the compiled code tells of a row, its memory ending with the last logit."""
    token, log_total = ctypes.c_int32(-7), ctypes.c_double(-7.0)
    library.calls.experts_likeliest(
        logits_V.data_ptr(), len(logits_V), ctypes.byref(token), ctypes.byref(log_total)
    )
    return token.value, log_total.value


@settings(max_examples=200, deadline=None)
@given(
    n=st.one_of(st.integers(1, 40), st.sampled_from([1023, 1024, 1025, 1040, 2048, 3001])),
    seed=st.integers(0, 10_000),
    levels=st.sampled_from([1, 2, 5, 0]),
    scale=st.sampled_from([1e-3, 5.0, 1e3, 3e38]),
)
def test_the_first_of_the_largest_is_told_for_rows_of_any_length(
    library: Library, n: int, seed: int, levels: int, scale: float
) -> None:
    """Many equal logits, zeros of both signs, huge ones: the place that numpy names, no sum below 0."""
    logits_V = (torch.rand(n, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * scale
    if levels:
        logits_V = (logits_V / scale * levels).round() * (scale / levels)
    token, log_total = likeliest_of(library, logits_V)
    assert token == int(logits_V.numpy().argmax())
    wanted = (logits_V.double() - logits_V.double().max()).exp().sum().log()
    assert log_total == pytest.approx(float(wanted), abs=2e-6, rel=2e-6)
    assert log_total >= 0


@settings(max_examples=100, deadline=None)
@given(
    n=st.one_of(st.integers(1, 40), st.sampled_from([1024, 1025, 2100])),
    place=st.floats(0, 1, exclude_max=True),
    bad=st.sampled_from([math.nan, -math.nan, math.inf, -math.inf]),
    rest=st.sampled_from([0.0, -5.0, 3e38]),
)
def test_one_logit_that_is_not_finite_is_noticed_anywhere(
    library: Library, n: int, place: float, bad: float, rest: float
) -> None:
    """First, last, in a block's tail, beside the largest floats: -1, as where a sum over the row looked."""
    logits_V = torch.full((n,), rest)
    assert likeliest_of(library, logits_V)[0] == 0
    logits_V[int(place * n)] = bad
    assert likeliest_of(library, logits_V) == (-1, 0.0)


def test_of_equal_logits_the_first_is_taken(library: Library) -> None:
    """Two tokens of one head row: the earlier one, also where a later block holds the other."""
    decoder, experts = random_world(3, 1, vocab_size=2100, tie_embeddings=False)
    assert decoder.lm_head is not None
    with torch.no_grad():
        decoder.lm_head.weight *= 0.01
        decoder.lm_head.weight[[700, 2000]] = 9.0
        decoder.lm_head.weight[[701, 2001]] = -9.0
    told = computed(bank_of(decoder, experts), library, 1, 2, 1).likeliest
    assert told is not None
    assert set(told.tokens_B) <= {700, 701}


@pytest.mark.parametrize("place", [0, 1500, 2099])
def test_a_logit_that_is_not_finite_shows_in_its_rows(library: Library, place: int) -> None:
    """NaN in any block makes the token -1."""
    decoder, experts = random_world(4, 1, vocab_size=2100, tie_embeddings=False)
    assert decoder.lm_head is not None
    with torch.no_grad():
        decoder.lm_head.weight[place, 3] = float("nan")
    told = computed(bank_of(decoder, experts), library, 1, 2, 2).likeliest
    assert told is not None
    assert list(told.tokens_B) == [-1, -1]


@pytest.mark.parametrize("neighbour", [{}, {"temperature": 0.9}, {"logprobs": 3}, {"presence_penalty": 0.5}])
def test_an_event_does_not_depend_on_how_simple_its_neighbours_are(
    library: Library, neighbour: dict[str, float]
) -> None:
    """A greedy row beside any other, and alone, and by torch's passes: same token, same numbers."""
    bank = bank_of(*random_world(5, 2))

    def events(names: list[str], *, told: bool) -> dict[str, list[object]]:
        engine = Engine(bank, max_sequences=2, max_context=40, runner=runner_of(bank, library))
        plain = engine.runner.run
        if not told:
            engine.runner.run = lambda pieces: replace(plain(pieces), likeliest=None)  # type: ignore[method-assign]
        for name in names:
            extra = neighbour if name == "other" else {}
            engine.submit(request(bank, name, prompt(7, 9), bank.digests, 2, **extra))
        found: dict[str, list[object]] = {name: [] for name in names}
        while not engine.idle:
            for event in engine.step():
                found[event.request_id].append((event.token_id, event.logprob, event.attribution_ppm))
            engine.commit()
        return found

    alone, beside = events(["one"], told=True)["one"], events(["one", "other"], told=True)
    assert beside["one"] == alone
    without = events(["one", "other"], told=False)
    for name in ("one", "other"):
        pairs = list(zip(beside[name], without[name], strict=True))
        assert [one[0] for one, _ in pairs] == [two[0] for _, two in pairs]  # type: ignore[index]
        assert np.allclose([one[1] for one, _ in pairs], [two[1] for _, two in pairs], atol=1e-5)  # type: ignore[index]


@pytest.mark.parametrize("neighbour", [{}, {"temperature": 0.9}])
def test_the_sequences_of_rows_that_are_not_finite_are_named(
    library: Library, neighbour: dict[str, float]
) -> None:
    """NaN behind the bank's back: the step is refused with the sequences it hit, drawn or likeliest."""
    decoder, experts = random_world(23, 2)
    low, high = sorted(experts)
    bank = bank_of(decoder, experts)
    with torch.no_grad():
        bank._experts[low].layer(1).ffn.up.weight.fill_(float("nan"))
    engine = Engine(bank, max_sequences=3, max_context=40, runner=runner_of(bank, library))
    engine.submit(request(bank, "fine", prompt(2, 4), (high,), 2))
    engine.submit(request(bank, "hit", prompt(1, 4), (low,), 2))
    engine.submit(request(bank, "drawn", prompt(3, 4), (low,), 2, **neighbour))
    with pytest.raises(TensorsNotFinite) as refused:
        engine.step()
    assert refused.value.facts["request_ids"] == ["hit", "drawn"]


def test_a_token_beyond_doubt_has_a_log_probability_of_plain_zero(library: Library) -> None:
    """Not -0.0, which answers would show."""
    decoder, experts = random_world(3, 1, tie_embeddings=False)
    assert decoder.lm_head is not None
    with torch.no_grad():
        decoder.lm_head.weight *= 1e5
    bank = bank_of(decoder, experts)
    engine = Engine(bank, max_sequences=1, max_context=40, runner=runner_of(bank, library))
    engine.submit(request(bank, "one", prompt(1, 4), bank.digests, 2))
    (event,) = engine.step()
    assert str(event.logprob) == "0.0"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_rows_that_changed_since_the_last_product_are_packed_again(
    library: Library, kind: str, threads: int
) -> None:
    """The same memory with other numbers gives another product, on every thread that takes part."""
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    matrix = pack_matrix(torch.randn(1024, 256).to(dtype))
    x_RI, first_RO, second_RO = torch.randn(5, 256), torch.empty(5, 1024), torch.empty(5, 1024)
    pool = Pool(library, threads)
    pool.multiply(matrix, x_RI, first_RO)
    x_RI.mul_(2)
    pool.multiply(matrix, x_RI, second_RO)
    pool.close()
    assert torch.equal(second_RO, 2 * first_RO)


def test_a_buffer_that_changed_within_a_step_is_packed_anew(library: Library) -> None:
    """Every layer's norm writes as many rows into one buffer: no thread takes them for those it packed last.

    A thread that has had no part in what came in between could; so there are more threads than work.
    """
    bank = bank_of(*random_world(6, 1, n_layers=6))
    runner = runner_of(bank, library, threads=3)
    pages = Pages(runner, random.Random(6))
    for walk in [pages.walk(bank, runner, prompt(seed, 9), bank.digests, 2) for seed in range(4)]:
        assert largest_difference(bank, finish(runner, walk, [2, 2, 2])) < 1e-4

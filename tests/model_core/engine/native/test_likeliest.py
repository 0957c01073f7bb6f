# SPDX-License-Identifier: Apache-2.0
"""What the compiled step tells of its logits and shares, and what tokens follow from it."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from step_builders import Pages, runner_of
from tensor_builders import bank_of, prompt, random_world, request

from model_core.engine.attribution import to_ppm
from model_core.engine.engine import Engine
from model_core.engine.native.library import Library, Pool
from model_core.engine.native.panels import pack_matrix
from model_core.engine.runner import StepResult
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
        assert sum(found) == 1_000_000
        assert all(abs(ppm.get(name, 0) - own) <= 1 for name, own in zip(names, found, strict=True))


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


@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_rows_that_changed_since_the_last_product_are_packed_again(library: Library, kind: str) -> None:
    """The same memory with other numbers gives another product."""
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    matrix = pack_matrix(torch.randn(256, 64).to(dtype))
    x_RI, first_RO, second_RO = torch.randn(5, 64), torch.empty(5, 256), torch.empty(5, 256)
    pool = Pool(library, 2)
    pool.multiply(matrix, x_RI, first_RO)
    x_RI.mul_(2)
    pool.multiply(matrix, x_RI, second_RO)
    pool.close()
    assert torch.equal(second_RO, 2 * first_RO)

# SPDX-License-Identifier: Apache-2.0
"""Random schedules under small page budgets, against each sequence generated alone and without a cache."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_builders import bank_of, copy_of, drain, prompt, random_world, request, tokens

from model_core.engine.engine import Engine
from model_core.engine.plain import generate
from model_core.engine.requests import SequenceRequest
from model_core.engine.torch_runner import TorchRunner
from model_core.errors import EngineFull, RequestRefused
from model_core.network.bank import ExpertBank, forward_logits


class _Told:
    """What a sequence has said under which set."""

    def __init__(self, asked: SequenceRequest) -> None:
        self.asked = asked
        self.parts: list[tuple[Sequence[str], int, list[int]]] = [(asked.experts, asked.top_k, [])]
        self.finished = False

    def check(self, bank: ExpertBank) -> None:
        """Every part is what the set says alone after all parts before."""
        ids = list(self.asked.prompt_ids)
        for experts, top_k, said in self.parts:
            if said:
                logits_SV = forward_logits(bank, [*ids, *said[:-1]], experts, top_k)
                assert logits_SV[len(ids) - 1 :].argmax(-1).tolist() == said
            ids += said


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_whatever_happens_each_sequence_says_what_it_says_alone(seed: int) -> None:
    """Submit, cancel, recompose, drop, add, discard at random; few pages, equal prompts, three tenants."""
    pick = random.Random(seed)
    decoder, experts = random_world(pick.randint(0, 3), 3)
    bank, whole = bank_of(decoder, experts), bank_of(decoder, experts)
    names = sorted(experts)
    runner = TorchRunner(bank, n_pages=pick.randint(3, 14), n_tails=4, page_size=pick.choice([2, 4, 8]))
    context = min(60, runner.n_pages * runner.page_size)
    engine = Engine(
        bank,
        max_sequences=pick.randint(1, 4),
        max_context=context,
        prefill_tokens=pick.choice([3, 16, 40]),
        runner=runner,
        prefix_reuse=pick.random() < 0.9,
    )
    told: dict[str, _Told] = {}
    for turn in range(30):
        act = pick.random()
        here = engine.request_ids
        if act < 0.4:
            length = pick.randint(1, min(context - 1, pick.choice([8, 16, 59])))
            top_k, chosen = pick.randint(1, 2), bank.digests[: pick.randint(0, 3)]
            asked = request(
                bank,
                f"r{turn}",
                prompt(pick.randint(0, 1), length),
                chosen,
                top_k,
                max_tokens=pick.randint(1, 24),
            )
            key = dataclasses.replace(asked.state_key, consumer=pick.choice("aaab"))
            asked = dataclasses.replace(asked, state_key=key, shares_prefixes=pick.random() < 0.3)
            try:
                engine.submit(asked)
            except EngineFull:
                continue
            told[asked.request_id] = _Told(asked)
        elif act < 0.45 and here:
            engine.cancel(pick.choice(here))
        elif act < 0.55 and here:
            name = pick.choice(here)
            chosen, top_k = bank.digests[: pick.randint(0, 3)], pick.randint(1, 2)
            consumer = told[name].asked.state_key.consumer
            engine.recompose(name, chosen, bank.state_key(chosen, top_k=top_k, consumer=consumer))
            told[name].parts.append((chosen, top_k, []))
        elif act < 0.6:
            gone = pick.choice(names)
            if gone in bank.digests:
                try:
                    engine.drop_expert(gone, poison=pick.random() < 0.5)
                except RequestRefused:
                    continue
            else:
                engine.add_expert(engine.prepare_expert(gone, copy_of(experts[gone])))
        for _ in range(pick.randint(0, 3)):
            _turn(engine, told, discard=pick.random() < 0.2)
    while not engine.idle:
        _turn(engine, told, discard=False)
    assert engine.n_pages_used == 0
    for one in told.values():
        one.check(whole)


def _turn(engine: Engine, told: dict[str, _Told], *, discard: bool) -> None:
    events = engine.step()
    if discard:
        engine.discard()
        assert engine.step() == events
    engine.commit()
    for event in events:
        told[event.request_id].parts[-1][2].append(event.token_id)


@pytest.fixture(scope="module")
def bank() -> ExpertBank:
    """Two gated experts; tests do not change it."""
    return bank_of(*random_world(24, 2))


def test_sequences_that_do_not_fit_together_step_back_and_all_end(bank: ExpertBank) -> None:
    """Four sequences of four pages over five pages: the youngest steps back, each says what it says alone."""
    asked = [request(bank, f"r{i}", prompt(i, 20), bank.digests, 2, max_tokens=40) for i in range(4)]
    engine = Engine(bank, max_sequences=4, max_context=60, n_pages=5)
    events = drain(engine, asked)
    assert engine.counts.preempted > 0
    assert engine.counts.recomputed_tokens > 0
    for one in asked:
        assert tokens(events[one.request_id]) == generate(bank, one.prompt_ids, one.experts, 2, one.sampling)


def test_several_answers_to_one_prompt_compute_it_once(bank: ExpertBank) -> None:
    """Four choices submitted together: the later three take over the pages of the first one."""
    ids = prompt(1, 50)
    asked = [
        request(bank, f"r{i}", ids, bank.digests, 2, temperature=1.0, seed=i, max_tokens=4) for i in range(4)
    ]
    engine = Engine(bank, max_sequences=4, max_context=64, prefill_tokens=256)
    events = drain(engine, asked)
    assert engine.counts.reused_tokens == 3 * 48
    assert engine.counts.prefill_tokens == 50 + 3 * 2
    assert engine.n_pages_cached == 3
    for one in asked:
        assert tokens(events[one.request_id]) == generate(bank, one.prompt_ids, one.experts, 2, one.sampling)


def test_a_sequence_that_returns_to_an_earlier_set_finds_what_it_computed_there(bank: ExpertBank) -> None:
    """There and back again: only what was not a full page is computed a third time."""
    low, high = bank.digests
    engine = Engine(bank, max_sequences=2, max_context=64)
    engine.submit(request(bank, "r", prompt(2, 40), (low, high), 2, max_tokens=20))
    for experts in ((low,), (low, high)):
        engine.step()
        engine.commit()
        assert engine.counts.reused_tokens == 0
        engine.recompose("r", experts, bank.state_key(experts, top_k=2, consumer="app"))
    engine.step()
    engine.commit()
    assert engine.counts.reused_tokens == 32
    assert engine.counts.recomputed_tokens == 40 + 9


def test_an_unused_prefix_makes_room_the_least_recently_used_first(bank: ExpertBank) -> None:
    """Eight pages: the prompt that was asked again stays, the older one goes."""
    engine = Engine(bank, max_sequences=1, max_context=64, n_pages=8)
    first, second, third = (
        request(bank, name, prompt(seed, 33), bank.digests, 2, max_tokens=1)
        for name, seed in (("a", 1), ("b", 2), ("c", 3))
    )
    drain(engine, [first])
    drain(engine, [second])
    drain(engine, [first])
    assert engine.counts.reused_tokens == 32
    drain(engine, [third])
    assert (engine.counts.evicted_pages, engine.n_pages_cached) == (0, 6)
    drain(engine, [request(bank, "long", prompt(4, 60), bank.digests, 2, max_tokens=1)])
    assert engine.counts.evicted_pages == 2
    for again, found in ((third, 32), (first, 32), (second, 0)):
        before = engine.counts.reused_tokens
        drain(engine, [again])
        assert engine.counts.reused_tokens - before == found

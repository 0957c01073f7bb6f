# SPDX-License-Identifier: Apache-2.0
"""Law 7: experts have one canonical order; in whatever order they come, the logits are the same."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_builders import BASE, bank_of, copy_of, drain, prompt, random_world, request
from tensor_worlds import World, worlds

from model_core.engine.engine import Engine
from model_core.network.bank import ExpertBank, forward_logits


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), n_experts=st.integers(2, 5), data=st.data())
def test_order_of_loading_and_of_naming_changes_no_bit(
    seed: int, n_experts: int, data: st.DataObject
) -> None:
    """Experts added in any order, some removed and added again, named in any order with repeats."""
    decoder, experts = random_world(seed, n_experts)
    names = sorted(experts)
    loading = data.draw(st.permutations(names), label="loading")
    naming = data.draw(st.permutations([*names, names[0]]), label="naming")
    plain, shuffled = bank_of(decoder, experts), ExpertBank(BASE, decoder)
    for name in loading:
        shuffled.add(name, copy_of(experts[name]))
    shuffled.remove(loading[0])
    shuffled.add(loading[0], copy_of(experts[loading[0]]))
    assert shuffled.digests == plain.digests == tuple(names)
    ids = prompt(seed, 12)
    for top_k in range(1, n_experts + 2):
        assert torch.equal(
            forward_logits(plain, ids, names, top_k), forward_logits(shuffled, ids, naming, top_k)
        )
        key = plain.state_key(names, top_k=top_k, consumer="app")
        assert shuffled.state_key(naming, top_k=top_k, consumer="app") == key


def test_the_engine_answers_alike_whatever_the_order() -> None:
    """The same requests with sets named forwards and backwards give equal events."""
    decoder, experts = random_world(11, 4)
    names = sorted(experts)
    answers = []
    for order in (names, names[::-1]):
        bank = bank_of(decoder, {name: experts[name] for name in order})
        engine = Engine(bank, max_sequences=4, max_context=48)
        asked = [
            request(bank, f"r{k}", prompt(k, 5 + k), order, k, temperature=0.9, seed=k) for k in (1, 2, 3)
        ]
        answers.append(drain(engine, asked))
    assert answers[0] == answers[1]


def test_equal_experts_tie_and_the_earlier_digest_is_taken() -> None:
    """Two equal experts tie for the only place wherever they win it: the earlier digest has it, always."""
    decoder, experts = random_world(13, 2)
    low, high = sorted(experts)
    bank = ExpertBank(BASE, decoder)
    for name in (high, low):
        bank.add(name, copy_of(experts[high]))
    engine = Engine(bank, max_sequences=1, max_context=48)
    said = drain(engine, [request(bank, "r", prompt(1, 6), (low, high), 1, max_tokens=20)])["r"]
    taken = {name for event in said for name in event.attribution_ppm}
    assert low in taken
    assert high not in taken


@settings(max_examples=12, deadline=None)
@given(world=worlds(min_experts=2), prefill=st.integers(1, 16), data=st.data())
def test_in_any_world_the_order_of_loading_and_naming_changes_nothing(
    world: World, prefill: int, data: st.DataObject
) -> None:
    """Any family and kinds: equal keys, equal logits, equal events of mixed batches."""
    loading = data.draw(st.permutations(world.names), label="loading")
    naming = data.draw(st.permutations(world.names), label="naming")
    top_k = data.draw(st.integers(1, len(world.names) + 1), label="k")
    plain, shuffled = bank_of(world.decoder, world.experts), ExpertBank(BASE, world.decoder)
    for name in loading:
        shuffled.add(name, copy_of(world.experts[name]))
    ids = prompt(world.seed, 10)
    assert torch.equal(
        forward_logits(plain, ids, world.names, top_k), forward_logits(shuffled, ids, naming, top_k)
    )
    answers = []
    for bank, order in ((plain, world.names), (shuffled, naming)):
        engine = Engine(bank, max_sequences=2, max_context=32, prefill_tokens=prefill)
        asked = [
            request(bank, "one", prompt(0, 5), sorted(order)[:1], top_k, max_tokens=5),
            request(bank, "all", prompt(1, 9), order, top_k, max_tokens=5),
        ]
        answers.append(drain(engine, asked))
    assert answers[0] == answers[1]

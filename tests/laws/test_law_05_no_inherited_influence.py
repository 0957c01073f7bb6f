# SPDX-License-Identifier: Apache-2.0
"""Law 5: no state computed under one expert set is ever read under another."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_builders import bank_of, drain, prompt, random_expert, random_world, request, tokens
from tensor_worlds import World, subsets, worlds

from model_core.engine.engine import Engine
from model_core.engine.plain import generate
from model_core.engine.requests import Sampling
from model_core.engine.states import SequenceStates
from model_core.errors import RequestRefused, StateKeyMismatch
from model_core.network.bank import StateKey


def test_keys_differ_in_everything_that_a_state_depends_on() -> None:
    """Base, experts, router, k, dtype and consumer tenant each change the key."""
    decoder, experts = random_world(1, 3)
    names = sorted(experts)
    bank = bank_of(decoder, experts)
    key = bank.state_key(names[:2], top_k=2, consumer="app")
    others = [
        bank.state_key(names[:1], top_k=2, consumer="app"),
        bank.state_key(names, top_k=2, consumer="app"),
        bank.state_key(names[:2], top_k=3, consumer="app"),
        bank.state_key(names[:2], top_k=2, consumer="another"),
        dataclasses.replace(key, base="sha256:" + "c" * 64),
        dataclasses.replace(key, dtype="bfloat16"),
    ]
    for part in ("router.bias", "router.row", "gate.bias", "gate.mean"):
        changed = bank_of(decoder, experts)
        expert = random_expert(decoder, 99)
        expert.load_state_dict(experts[names[0]].state_dict())
        expert.state_dict()[f"layers.1.{part}"].sub_(0.5)
        changed.add(names[0], expert)
        others.append(changed.state_key(names[:2], top_k=2, consumer="app"))
    assert len({key, *others}) == 1 + len(others)
    assert key == bank.state_key(reversed(names[:2]), top_k=2, consumer="app")


def test_a_state_is_not_read_under_another_key() -> None:
    """Asking for a slot with any other key raises instead of handing out the state."""
    decoder, experts = random_world(2, 2)
    bank = bank_of(decoder, experts)
    states = SequenceStates(bank.shape, max_sequences=2, max_context=8, dtype=bank.dtype)
    key = bank.state_key(experts, top_k=2, consumer="app")
    slot = states.open(key)
    assert states.claim(slot, key) == 0
    for change in ({"consumer": "other"}, {"experts": ()}, {"top_k": 1}, {"router": "sha256:" + "0" * 64}):
        with pytest.raises(StateKeyMismatch):
            states.claim(slot, dataclasses.replace(key, **change))


def test_an_engine_that_forgets_to_drop_states_stops_instead_of_answering(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A recomposition that leaves the old states in place is caught at the next step."""
    decoder, experts = random_world(3, 2)
    bank = bank_of(decoder, experts)
    engine = Engine(bank, max_sequences=2, max_context=32)
    engine.submit(request(bank, "r", prompt(3, 6), experts, 2))
    engine.step()
    engine.commit()
    monkeypatch.setattr(SequenceStates, "reset", lambda *_: None)
    engine.recompose("r", (), bank.state_key((), top_k=2, consumer="app"))
    with pytest.raises(StateKeyMismatch):
        engine.step()


def test_nothing_of_an_old_set_remains_in_memory() -> None:
    """After recompose and after the end of a sequence its slot holds zeros: keys, values and prefix sums."""
    decoder, experts = random_world(4, 2)
    bank = bank_of(decoder, experts)
    engine = Engine(bank, max_sequences=3, max_context=32)
    for name in ("a", "b", "c"):
        engine.submit(request(bank, name, prompt(4, 9), experts, 2))
    engine.step()
    engine.commit()
    engine.step()
    engine.discard()
    states = engine._states
    engine.recompose("b", (), bank.state_key((), top_k=2, consumer="app"))
    for tensor in (*states.keys, *states.values):
        assert not tensor[1].any()
        assert tensor[0].any()
    assert not states.sums_LND[:, 1].any()
    drain(engine)
    assert not any(tensor.any() for tensor in (*states.keys, *states.values, states.sums_LND))


def test_a_key_that_does_not_describe_the_set_is_refused() -> None:
    """Neither a request nor a recomposition is taken with the key of another set."""
    decoder, experts = random_world(5, 2)
    bank = bank_of(decoder, experts)
    engine = Engine(bank, max_sequences=2, max_context=32)
    good = request(bank, "r", prompt(5, 4), experts, 2)
    other: StateKey = bank.state_key((), top_k=2, consumer="app")
    with pytest.raises(RequestRefused):
        engine.submit(dataclasses.replace(good, state_key=other))
    engine.submit(good)
    with pytest.raises(RequestRefused):
        engine.recompose("r", (), good.state_key)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), data=st.data())
def test_recomposing_at_any_moment_equals_starting_under_the_new_set(seed: int, data: st.DataObject) -> None:
    """In prefill, while decoding, twice in a row: later tokens are those of the new set alone."""
    decoder, experts = random_world(seed, 3)
    bank = bank_of(decoder, experts)
    names = sorted(experts)
    engine = Engine(bank, max_sequences=3, max_context=64, prefill_tokens=8)
    first = data.draw(st.sets(st.sampled_from(names)), label="first")
    ids = prompt(seed, data.draw(st.integers(1, 20), label="length"))
    engine.submit(request(bank, "neighbour", prompt(seed + 1, 10), names, 3, max_tokens=24))
    engine.submit(request(bank, "r", ids, first, 2, max_tokens=16))
    said: list[int] = []
    for _ in range(data.draw(st.integers(0, 8), label="steps before")):
        said += [event.token_id for event in engine.step() if event.request_id == "r"]
        engine.commit()
    second = sorted(data.draw(st.sets(st.sampled_from(names)), label="second"))
    if "r" not in engine.request_ids:
        return
    engine.recompose("r", names, bank.state_key(names, top_k=4, consumer="app"))
    engine.recompose("r", second, bank.state_key(second, top_k=2, consumer="app"))
    after = tokens(drain(engine)["r"])
    sampling = Sampling(max_tokens=16 - len(said), temperature=0.0)
    with torch.inference_mode():
        assert after == generate(bank, [*ids, *said], second, 2, sampling)


@settings(max_examples=12, deadline=None)
@given(world=worlds(min_experts=2, max_experts=6), steps=st.integers(0, 8), data=st.data())
def test_in_any_world_a_recomposed_sequence_reads_nothing_of_its_past(
    world: World, steps: int, data: st.DataObject
) -> None:
    """After a change of set, events are those of a bank that only ever held the new set; NaN proves it."""
    bank, names = bank_of(world.decoder, world.experts), world.names
    second = data.draw(subsets(names[1:]), label="second")
    ids = prompt(world.seed, data.draw(st.integers(1, 16), label="length"))
    top_k = data.draw(st.integers(1, len(names) + 1), label="k")
    engine = Engine(bank, max_sequences=2, max_context=48, prefill_tokens=data.draw(st.integers(1, 9)))
    engine.submit(request(bank, "r", ids, names, top_k, max_tokens=12))
    said: list[int] = []
    for _ in range(steps):
        said += tokens(engine.step())
        engine.commit()
    if "r" not in engine.request_ids:
        return
    engine.recompose("r", second, bank.state_key(second, top_k=top_k, consumer="app"))
    for name in set(names) - set(second):
        engine.drop_expert(name, poison=True)
    after = [(event.token_id, event.logprob, event.attribution_ppm) for event in drain(engine)["r"]]
    fresh = bank_of(world.decoder, {name: world.experts[name] for name in second})
    # The same chunks of the same prompt: prefill of another length may differ in the last bits.
    restarted = Engine(fresh, max_sequences=2, max_context=48, prefill_tokens=engine.prefill_tokens)
    again = drain(restarted, [request(fresh, "r", [*ids, *said], second, top_k, max_tokens=12 - len(said))])[
        "r"
    ]
    assert after == [(event.token_id, event.logprob, event.attribution_ppm) for event in again]

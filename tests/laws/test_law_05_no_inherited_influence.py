# SPDX-License-Identifier: Apache-2.0
"""Law 5: no state computed under one expert set is ever read under another."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_builders import bank_of, copy_of, drain, prompt, random_expert, random_world, request, tokens
from tensor_worlds import World, subsets, worlds

from model_core.engine.engine import Engine
from model_core.engine.plain import generate
from model_core.engine.requests import Sampling, TokenEvent
from model_core.engine.tables import TableStore, scope_of
from model_core.engine.torch_runner import TorchRunner
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
    """Asking for a table with any other key raises instead of handing out the state, shared or not."""
    decoder, experts = random_world(2, 2)
    bank = bank_of(decoder, experts)
    key = bank.state_key(experts, top_k=2, consumer="app")
    for shared in (False, True):
        store = TableStore(TorchRunner(bank, n_pages=2, n_tails=1))
        table = store.open(scope_of(key, shared=shared))
        assert store.claim(table, scope_of(key, shared=shared)) == 0
        changes = [{"experts": ()}, {"top_k": 1}, {"router": "sha256:" + "0" * 64}, {"dtype": "bfloat16"}]
        for change in changes if shared else [*changes, {"consumer": "other"}]:
            with pytest.raises(StateKeyMismatch):
                store.claim(table, scope_of(dataclasses.replace(key, **change), shared=shared))
        with pytest.raises(StateKeyMismatch):
            store.claim(table, scope_of(key, shared=not shared))


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
    monkeypatch.setattr(TableStore, "restart", lambda *_: None)
    engine.recompose("r", (), bank.state_key((), top_k=2, consumer="app"))
    with pytest.raises(StateKeyMismatch):
        engine.step()


def _written(runner: TorchRunner) -> set[int]:
    """Pages in which anything stands."""
    return {
        page
        for page in range(runner.n_pages)
        if any(bool(tensor[page].any()) for tensor in (*runner.keys, *runner.values, *runner.page_sums))
    }


def test_nothing_of_an_old_set_remains_in_memory() -> None:
    """Pages that nobody can find any more hold zeros: keys, values and prefix sums; so do free tails."""
    decoder, experts = random_world(4, 2)
    bank = bank_of(decoder, experts)
    low, high = sorted(experts)
    runner = TorchRunner(bank, n_pages=24, n_tails=3)
    engine = Engine(bank, max_sequences=3, max_context=64, runner=runner)
    sets = {"a": (low,), "b": (low, high), "c": (high,)}
    for name, chosen in sets.items():
        engine.submit(request(bank, name, prompt(4, 37), chosen, 2))
    engine.step()
    engine.commit()
    engine.step()
    engine.discard()
    assert len(_written(runner)) == 9
    engine.recompose("b", (high,), bank.state_key((high,), top_k=2, consumer="app"))
    assert len(_written(runner)) == 8  # b's third page was not full
    engine.cancel("a")
    assert len(_written(runner)) == engine.n_pages_cached + 1 == 7
    engine.drop_expert(low, poison=True)
    assert len(_written(runner)) == engine.n_pages_cached + 1 == 3
    drain(engine)
    assert len(_written(runner)) == engine.n_pages_cached == 2
    assert engine.n_pages_used == 0
    assert not runner.tail_sums_LND.any()
    engine.drop_expert(high, poison=False)
    assert not _written(runner)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), n_pages=st.integers(4, 12), data=st.data())
def test_what_stands_in_free_pages_changes_nothing(seed: int, n_pages: int, data: st.DataObject) -> None:
    """NaN in every free page before every step: equal events, with evictions and sequences that step back."""
    decoder, experts = random_world(seed, 3)
    bank = bank_of(decoder, experts)
    names = sorted(experts)
    asked = [
        request(
            bank,
            f"r{place}",
            prompt(data.draw(st.integers(0, 1), label="text"), data.draw(st.integers(1, 40), label="length")),
            data.draw(subsets(names), label="set"),
            2,
            max_tokens=data.draw(st.integers(1, 20), label="tokens"),
        )
        for place in range(5)
    ]
    answers = []
    for dirty in (False, True):
        runner = TorchRunner(bank, n_pages=n_pages, n_tails=3)
        engine = Engine(bank, max_sequences=3, max_context=64, runner=runner, max_waiting=5)
        for one in asked:
            engine.submit(one)
        events: dict[str, list[TokenEvent]] = {}
        while not engine.idle:
            if dirty:
                free = torch.tensor(engine._store._pool._free, dtype=torch.long)
                with torch.inference_mode():
                    for tensor in (*runner.keys, *runner.values, *runner.page_sums):
                        tensor[free] = float("nan")
            for event in engine.step():
                events.setdefault(event.request_id, []).append(event)
            engine.commit()
        answers.append(events)
    assert answers[0] == answers[1]


def test_an_equal_prompt_is_found_again_under_an_equal_key_alone() -> None:
    """Another tenant, set, k or router: a miss, in the counts too; the same: all full pages but the last."""
    decoder, experts = random_world(8, 2)
    bank = bank_of(decoder, experts)
    low, high = sorted(experts)
    engine = Engine(bank, max_sequences=2, max_context=64, n_pages=32)
    first = request(bank, "r", prompt(8, 40), (low, high), 2, max_tokens=12)
    answer = tokens(drain(engine, [first])["r"])
    assert engine.counts.reused_tokens == 0
    others = [
        request(bank, "set", prompt(8, 40), (low,), 2),
        request(bank, "k", prompt(8, 40), (low, high), 3),
        dataclasses.replace(first, state_key=dataclasses.replace(first.state_key, consumer="another")),
        dataclasses.replace(first, shares_prefixes=True),
    ]
    for other in others:
        drain(engine, [other])
    assert engine.counts.reused_tokens == engine.counts.prefix_hits == 0
    assert tokens(drain(engine, [first])["r"]) == answer
    assert (engine.counts.reused_tokens, engine.counts.prefix_hits) == (32, 1)
    # Thirty-two tokens fill two pages; the last of them is computed all the same.
    drain(engine, [dataclasses.replace(first, prompt_ids=first.prompt_ids[:32])])
    assert engine.counts.reused_tokens == 48
    # The third page was filled by the answer.
    drain(engine, [dataclasses.replace(first, prompt_ids=(*first.prompt_ids, *answer))])
    assert engine.counts.reused_tokens == 96


def test_prefixes_are_shared_between_tenants_that_both_say_so() -> None:
    """One says so and finds nothing; the second that says so finds the first's; who does not finds none."""
    decoder, experts = random_world(9, 1)
    bank = bank_of(decoder, experts)
    engine = Engine(bank, max_sequences=2, max_context=64)
    plain = request(bank, "r", prompt(9, 40), experts, 2)
    found = []
    for consumer, shares in (("one", True), ("two", False), ("two", True), ("three", False), ("one", False)):
        key = dataclasses.replace(plain.state_key, consumer=consumer)
        before = engine.counts.reused_tokens
        drain(engine, [dataclasses.replace(plain, state_key=key, shares_prefixes=shares)])
        found.append(engine.counts.reused_tokens - before)
    assert found == [0, 0, 32, 0, 0]


def test_a_publication_drops_the_prefixes_of_its_expert_and_no_other() -> None:
    """Five hundred experts come and go; the prefixes of other sets are found as before."""
    decoder, experts = random_world(10, 3)
    bank = bank_of(decoder, experts)
    low, middle, high = sorted(experts)
    engine = Engine(bank, max_sequences=4, max_context=64, n_pages=64)
    sets = {"none": (), "low": (low,), "pair": (low, middle)}
    drain(engine, [request(bank, name, prompt(10, 40), chosen, 2) for name, chosen in sets.items()])
    cached, churned = engine.n_pages_cached, experts[high]
    for turn in range(500):
        if turn % 100 == 0:
            drain(engine, [request(bank, "high", prompt(10, 40), (high, low), 2, max_tokens=1)])
        engine.drop_expert(high, poison=bool(turn % 2))
        assert engine.n_pages_cached == cached
        engine.add_expert(engine.prepare_expert(high, copy_of(churned)))
    assert engine.counts.dropped_pages == 10
    before = engine.counts.reused_tokens
    drain(engine, [request(bank, name, prompt(10, 40), chosen, 2) for name, chosen in sets.items()])
    assert engine.counts.reused_tokens - before == 3 * 32


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

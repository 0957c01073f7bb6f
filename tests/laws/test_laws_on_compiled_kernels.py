# SPDX-License-Identifier: Apache-2.0
"""Laws 4 to 7 on the compiled kernels, where no bit of a row depends on the others: held bit for bit.

What the laws compare may differ in neighbours, chunks, page budgets and reused prefixes; the answers may not.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_builders import BASE, bank_of, copy_of, drain, in_bfloat16, prompt, request
from tensor_worlds import World, subsets, worlds

from model_core.engine.engine import Engine
from model_core.engine.native.library import Library
from model_core.engine.native.step import NativeRunner
from model_core.engine.requests import SequenceRequest, TokenEvent
from model_core.network.bank import ExpertBank

Events = dict[str, list[TokenEvent]]


def _engine(
    bank: ExpertBank, library: Library, *, n_pages: int = 16, reuse: bool = True, prefill: int = 64
) -> Engine:
    runner = NativeRunner(bank, library, n_pages=n_pages, n_tails=4, threads=1)
    engine = Engine(
        bank,
        max_sequences=4,
        max_context=48,
        prefill_tokens=prefill,
        runner=runner,
        prefix_reuse=reuse,
        max_waiting=8,
    )
    assert engine.exact
    return engine


def _alone(bank: ExpertBank, library: Library, asked: Sequence[SequenceRequest]) -> Events:
    """Each request in an engine of its own that reuses nothing and computes prompts whole."""
    said: Events = {}
    for one in asked:
        said |= drain(_engine(bank, library, reuse=False), [one])
    return said


def _asked(bank: ExpertBank, names: Sequence[str], seed: int, count: int) -> list[SequenceRequest]:
    """Requests over two texts, so that prefixes meet; sets, k and sampling of their own."""
    pick = random.Random(seed)
    return [
        request(
            bank,
            f"r{place}",
            prompt(pick.randint(0, 1), pick.randint(1, 40)),
            names[: pick.randint(0, len(names))]
            if pick.random() < 0.7
            else pick.sample(names, min(1, len(names))),
            pick.randint(1, 3),
            max_tokens=pick.randint(1, 8),
            temperature=pick.choice([0.0, 0.9]),
            top_p=pick.choice([1.0, 0.9]),
            seed=pick.randint(0, 9),
            logprobs=pick.choice([0, 3]),
        )
        for place in range(count)
    ]


@settings(max_examples=20)
@given(
    world=worlds(max_experts=5),
    seed=st.integers(0, 10_000),
    prefill=st.integers(1, 40),
    n_pages=st.integers(3, 16),
    half=st.booleans(),
)
def test_neighbours_chunks_pages_and_prefixes_change_no_bit(
    library: Library, world: World, seed: int, prefill: int, n_pages: int, half: bool
) -> None:
    """Law 6: together, in chunks, with few pages and reused prefixes, every event is what it is alone."""
    if half and all(expert.form.kind != "int8" for expert in world.experts.values()):
        for module in (world.decoder, *world.experts.values()):
            in_bfloat16(module)
    bank = bank_of(world.decoder, world.experts)
    asked = _asked(bank, world.names, seed, 6)
    together = drain(_engine(bank, library, n_pages=n_pages, prefill=prefill), asked)
    assert together == _alone(bank, library, asked)


@settings(max_examples=15)
@given(world=worlds(min_experts=2, max_experts=6), seed=st.integers(0, 10_000), data=st.data())
def test_a_poisoned_expert_changes_no_bit_whatever_else_runs(
    library: Library, world: World, seed: int, data: st.DataObject
) -> None:
    """Law 4: a batch in a bank full of NaN answers as each request alone in one that never held the rest."""
    gone = data.draw(subsets(world.names, min_size=1), label="gone")
    left = {name: expert for name, expert in world.experts.items() if name not in gone}
    sick, fresh = bank_of(world.decoder, world.experts), bank_of(world.decoder, left)
    engine = _engine(sick, library, prefill=data.draw(st.integers(1, 30), label="prefill"))
    for name in gone:
        engine.drop_expert(name, poison=True)
    said = drain(engine, _asked(sick, sorted(left), seed, 4))
    assert _plain(said) == _plain(_alone(fresh, library, _asked(fresh, sorted(left), seed, 4)))


def _plain(events: Mapping[str, Sequence[TokenEvent]]) -> object:
    """Events as values that compare across banks."""
    return {name: [(e.token_id, e.logprob, e.attribution_ppm) for e in said] for name, said in events.items()}


@settings(max_examples=20)
@given(world=worlds(min_experts=2, max_experts=4), seed=st.integers(0, 10_000), steps=st.integers(0, 8))
def test_a_recomposed_sequence_goes_on_bit_for_bit_as_if_it_began_there(
    library: Library, world: World, seed: int, steps: int
) -> None:
    """Law 5: after a change of set, with a withdrawal and NaN in free pages, nothing of the past shows."""
    pick = random.Random(seed)
    bank = bank_of(world.decoder, world.experts)
    engine = _engine(bank, library, prefill=pick.randint(1, 30), n_pages=pick.randint(6, 16))
    runner = engine.runner
    assert isinstance(runner, NativeRunner)
    ids = prompt(0, pick.randint(1, 30))
    first = request(bank, "r", ids, world.names, 2, max_tokens=12)
    for one in (first, request(bank, "n", prompt(0, 20), world.names[1:], 2, max_tokens=12)):
        engine.submit(one)
    said: list[int] = []
    for _ in range(steps):
        said += [event.token_id for event in engine.step() if event.request_id == "r"]
        engine.commit()
    if "r" not in engine.request_ids:
        return
    second = world.names[1:][: pick.randint(0, len(world.names) - 1)]
    engine.recompose("r", second, bank.state_key(second, top_k=2, consumer="app"))
    engine.drop_expert(world.names[0], poison=True)
    free = torch.tensor(engine._store._pool._free, dtype=torch.long)
    runner._keys_values_PX[free] = float("nan")
    runner._page_sums_PLD[free] = float("nan")
    after = drain(engine)["r"]
    fresh = bank_of(world.decoder, {name: world.experts[name] for name in second})
    again = request(fresh, "r", [*ids, *said], second, 2, max_tokens=12 - len(said))
    assert _plain({"r": after}) == _plain(_alone(fresh, library, [again]))


@settings(max_examples=15)
@given(world=worlds(min_experts=2, max_experts=5), seed=st.integers(0, 10_000))
def test_the_order_in_which_experts_came_changes_no_bit(library: Library, world: World, seed: int) -> None:
    """Law 7: loaded in any order, while running, one of them twice: equal events."""
    plain, shuffled = bank_of(world.decoder, world.experts), ExpertBank(BASE, world.decoder)
    engine = _engine(shuffled, library)
    order = random.Random(seed).sample(world.names, len(world.names))
    for name in order:
        engine.add_expert(engine.prepare_expert(name, copy_of(world.experts[name])))
    engine.drop_expert(order[0], poison=False)
    engine.add_expert(engine.prepare_expert(order[0], copy_of(world.experts[order[0]])))
    said = drain(engine, _asked(shuffled, world.names, seed, 4))
    assert said == drain(_engine(plain, library), _asked(plain, world.names, seed, 4))

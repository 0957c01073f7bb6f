# SPDX-License-Identifier: Apache-2.0
"""Which replica answers: affinity, bounded load and small moves, as properties of pure functions."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cluster.hosting.routing import ReplicaState, affinity_key, load_bound, route

KEYS = st.binary(min_size=16, max_size=16)
FLEETS = st.dictionaries(
    st.text("abcdefgh0123", min_size=1, max_size=8), st.tuples(st.integers(0, 200), st.booleans()), max_size=9
).map(lambda found: [ReplicaState(name=n, in_flight=f, holds=h) for n, (f, h) in found.items()])


@given(KEYS, FLEETS, st.randoms(use_true_random=False))
def test_order_names_every_replica_once_whatever_the_input_order(
    key: bytes, fleet: list[ReplicaState], shuffler: random.Random
) -> None:
    """The order is a permutation of the replicas and depends on no order of what is known about them."""
    order = route(key, fleet)
    assert sorted(order) == sorted(state.name for state in fleet)
    mixed = list(fleet)
    shuffler.shuffle(mixed)
    assert route(key, mixed) == order


@given(KEYS, FLEETS)
def test_first_is_never_overloaded(key: bytes, fleet: list[ReplicaState]) -> None:
    """The first replica is below the load bound, one always is, and every overloaded one comes after it."""
    if not fleet:
        return
    bound, loads = load_bound(fleet), {state.name: state.in_flight for state in fleet}
    over = [loads[name] >= bound for name in route(key, fleet)]
    assert not over[0]
    assert over == sorted(over)


@given(KEYS, FLEETS)
def test_experts_in_memory_count_before_the_hash(key: bytes, fleet: list[ReplicaState]) -> None:
    """Among replicas that are not overloaded those that hold the experts come first."""
    bound = load_bound(fleet)
    states = {state.name: state for state in fleet}
    holds = [states[n].holds for n in route(key, fleet) if states[n].in_flight < bound]
    assert holds == sorted(holds, reverse=True)


@given(KEYS, FLEETS.filter(lambda fleet: len(fleet) > 1), st.data())
def test_a_replica_that_leaves_moves_only_its_own_keys(
    key: bytes, fleet: list[ReplicaState], data: st.DataObject
) -> None:
    """Without one of several idle replicas the others keep their order."""
    idle = [replace(state, in_flight=0, holds=True) for state in fleet]
    gone = data.draw(st.sampled_from(idle))
    rest = [state for state in idle if state != gone]
    assert route(key, rest) == tuple(name for name in route(key, idle) if name != gone.name)


def test_keys_spread_over_replicas() -> None:
    """Four idle replicas get about a quarter of 2,000 prompts each."""
    fleet = [ReplicaState(name=f"r{n}") for n in range(4)]
    count = Counter(route(affinity_key("d", "t", f"prompt {n}"), fleet)[0] for n in range(2000))
    assert min(count.values()) > 400


def test_a_hot_prefix_spills_in_one_order() -> None:
    """One prompt asked 40 times at once fills the replicas one after another and overloads none of them."""
    key, loads = affinity_key("d", "t", "always the same"), dict.fromkeys("abcd", 0)
    for _ in range(40):
        states = [ReplicaState(name=name, in_flight=n) for name, n in loads.items()]
        loads[route(key, states)[0]] += 1
    assert max(loads.values()) <= 13
    assert sum(loads.values()) == 40


def test_key_is_of_set_tenant_and_beginning() -> None:
    """Another deployment, tenant or beginning is another key; what follows the beginning is not."""
    system = "You are careful. " * 20
    one = affinity_key("d", "t", system + "first question")
    assert affinity_key("d", "t", system + "second question") == one
    others = {
        affinity_key("e", "t", system),
        affinity_key("d", "u", system),
        affinity_key("d", "t", "x" + system),
        affinity_key("d", "t", [1, 2, 3]),
    }
    assert one not in others
    assert len(others) == 4

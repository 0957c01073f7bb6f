# SPDX-License-Identifier: Apache-2.0
"""The queue: first come first served within a tenant, tokens by weight between tenants, bounded."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.engine.queue import FairQueue
from model_core.errors import EngineFull

costs = st.integers(1, 50)


@settings(max_examples=60, deadline=None)
@given(
    crowds=st.lists(st.lists(costs, min_size=1, max_size=60), min_size=1, max_size=6),
    taken=st.integers(0, 40),
    used=st.lists(st.integers(0, 500), min_size=40, max_size=40),
)
def test_a_newcomer_is_passed_by_at_most_one_request_of_every_other_tenant(
    crowds: list[list[int]], taken: int, used: list[int]
) -> None:
    """However many the others have waiting, and whatever their running requests use meanwhile."""
    queue: FairQueue[str] = FairQueue(max_waiting=10_000)
    for place, crowd in enumerate(crowds):
        for cost in crowd:
            queue.put(f"crowd{place}", f"crowd{place}", cost=cost)
    for step in range(min(taken, len(queue) - 1)):
        tenant = queue.pop()
        assert tenant is not None
        queue.charge(tenant, used[step])
    queue.put("new", "new", cost=1000)
    passed: list[str | None] = []
    while (one := queue.pop()) != "new":
        passed.append(one)
    assert len(passed) == len(set(passed))


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 5.0]), min_size=2, max_size=4),
    sizes=st.lists(st.tuples(costs, st.integers(0, 80)), min_size=300, max_size=300),
    places=st.integers(1, 8),
)
def test_tokens_of_tenants_that_always_wait_follow_their_weights(
    weights: list[float], sizes: list[tuple[int, int]], places: int
) -> None:
    """Requests of any sizes in a few places: tokens per weight differ by twice the places' use at most."""
    queue: FairQueue[tuple[int, int]] = FairQueue(max_waiting=1000)
    supply = [deque(sizes) for _ in weights]
    running: deque[tuple[int, int]] = deque()
    for _ in range(200):
        for tenant, weight in enumerate(weights):
            while queue.waiting_of(str(tenant)) < 2 and supply[tenant]:
                cost, later = supply[tenant].popleft()
                queue.put(str(tenant), (tenant, later), cost=cost, weight=weight)
        if not all(queue.waiting_of(str(tenant)) for tenant in range(len(weights))):
            break
        ahead = [queue.waiting_of(str(tenant)) for tenant in range(len(weights))]
        item = queue.pop()
        assert item is not None
        tenant = item[0]
        assert queue.waiting_of(str(tenant)) == ahead[tenant] - 1
        running.append(item)
        if len(running) > places:
            done, later = running.popleft()
            queue.charge(str(done), later, weight=weights[done])
    counters = [queue._lanes[str(tenant)].counter for tenant in range(len(weights))]
    largest = max(max(cost, later) for cost, later in sizes)
    # A tenant may have (places + 1) requests running that were not charged in full when it was chosen.
    assert max(counters) - min(counters) <= 2 * (places + 1) * largest / min(weights)


def test_twice_the_weight_gets_twice_the_tokens() -> None:
    """Equal requests of two tenants: two of one for each of the other."""
    queue: FairQueue[str] = FairQueue(max_waiting=1000)
    for _ in range(300):
        queue.put("light", "light", cost=10, weight=1.0)
        queue.put("heavy", "heavy", cost=10, weight=2.0)
    first = [queue.pop() for _ in range(300)]
    assert first.count("heavy") == 200


@settings(max_examples=60, deadline=None)
@given(acts=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), costs), max_size=120))
def test_nothing_is_lost_held_back_or_reordered_within_a_tenant(acts: list[tuple[str, int, int]]) -> None:
    """Random puts, pops, removals and charges against one list per tenant."""
    queue: FairQueue[tuple[str, int]] = FairQueue(max_waiting=20, max_waiting_per_tenant=9)
    lists: dict[str, list[tuple[str, int]]] = {"a": [], "b": [], "c": []}
    for number, (tenant, act, cost) in enumerate(acts):
        total = sum(map(len, lists.values()))
        if act <= 1:
            item = (tenant, number)
            if total == 20 or len(lists[tenant]) == 9:
                with pytest.raises(EngineFull):
                    queue.put(tenant, item, cost=cost)
            else:
                queue.put(tenant, item, cost=cost)
                lists[tenant].append(item)
        elif act == 2 and lists[tenant]:
            item = lists[tenant].pop(cost % len(lists[tenant]))
            queue.remove(tenant, item)
            with pytest.raises(ValueError, match="does not wait"):
                queue.remove(tenant, item)
        else:
            queue.charge(tenant, cost)
            nearest = queue.peek()
            found = queue.pop()
            assert found == nearest
            assert (found is None) == (total == 0)
            if found is not None:
                assert found == lists[found[0]].pop(0)
        assert len(queue) == sum(map(len, lists.values()))
        assert all(queue.waiting_of(name) == len(left) for name, left in lists.items())


def test_an_idle_tenant_saves_up_no_claim() -> None:
    """After a hundred requests of others it shares from now on; it is not served a hundred times first."""
    queue: FairQueue[str] = FairQueue(max_waiting=1000)
    queue.put("early", "early", cost=10)
    queue.pop()
    for _ in range(100):
        queue.put("busy", "busy", cost=10)
        queue.pop()
    for _ in range(20):
        queue.put("busy", "busy", cost=10)
        queue.put("early", "early", cost=10)
    assert [queue.pop() for _ in range(20)].count("early") == 10


def test_tenants_that_are_gone_are_forgotten() -> None:
    """Ten thousand tenants that came once leave no more than a bounded memory."""
    queue: FairQueue[int] = FairQueue(max_waiting=4)
    for tenant in range(10_000):
        queue.put(str(tenant), tenant, cost=5)
        queue.pop()
    assert len(queue._lanes) < 1100

# SPDX-License-Identifier: Apache-2.0
"""Who leaves memory when it is short: the least recently entitled, never one in use."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.engine.residency import Residency, Resident, evict

sizes = st.integers(1, 50)
experts = st.lists(
    st.builds(
        Resident,
        digest=st.text("abcdef", min_size=4, max_size=4),
        size_bytes=sizes,
        entitled_s=st.floats(0, 5),
        pinned=st.sampled_from([False, False, True]),
        successor=st.sampled_from([None, None, "next"]),
    ),
    unique_by=lambda one: one.digest,
    max_size=12,
)
in_use = st.sets(st.integers(0, 11))


def some_of(residents: list[Resident], places: set[int]) -> set[str]:
    """Digests of those at some places."""
    return {one.digest for place, one in enumerate(residents) if place in places}


@settings(max_examples=60, deadline=None)
@given(residents=experts, budget=st.integers(0, 300), incoming=st.integers(0, 60), places=in_use)
def test_the_budget_is_kept_or_what_lacks_is_said(
    residents: list[Resident], budget: int, incoming: int, places: set[int]
) -> None:
    """What stays and what comes fit, or all that may leave has left and the shortage is exact."""
    busy = some_of(residents, places)
    found = evict(residents, budget_bytes=budget, incoming_bytes=incoming, busy=busy)
    stays = [one for one in residents if one.digest not in found.digests]
    needed = sum(one.size_bytes for one in stays) + incoming
    assert found.short_bytes == max(0, needed - budget)
    if found.short_bytes:
        assert all(one.pinned or one.digest in busy for one in stays)


@settings(max_examples=60, deadline=None)
@given(residents=experts, budget=st.integers(0, 300), places=in_use, since=st.floats(0, 6))
def test_those_who_leave_come_before_those_who_stay(
    residents: list[Resident], budget: int, places: set[int], since: float
) -> None:
    """In one order: free to leave, not kept for a roll back, least recently entitled; and none too many."""
    busy = some_of(residents, places)
    found = evict(residents, budget_bytes=budget, busy=busy, entitled_before_s=since)
    known = {one.digest: one for one in residents}
    leaves = [known[digest] for digest in found.digests]
    free = [one for one in residents if not one.pinned and one.digest not in busy and one.entitled_s < since]
    order = sorted(free, key=lambda one: (one.successor is not None, one.entitled_s, one.digest))
    assert leaves == order[: len(leaves)]
    if leaves:
        total = sum(one.size_bytes for one in residents)
        assert total - sum(one.size_bytes for one in leaves[:-1]) > budget


@settings(max_examples=60, deadline=None)
@given(residents=experts, budget=st.integers(0, 300))
def test_the_order_of_asking_does_not_matter(residents: list[Resident], budget: int) -> None:
    """Equal experts in another order leave alike."""
    assert evict(residents, budget_bytes=budget) == evict(residents[::-1], budget_bytes=budget)


def test_who_is_in_use_or_pinned_stays() -> None:
    """Use lasts as long as it is named; a pin for ever."""
    residency = Residency(budget_bytes=20)
    residency.admit("a", size_bytes=10, now_s=1.0)
    residency.admit("b", size_bytes=10, now_s=2.0, pinned=True)
    assert residency.make_room(5, busy={"a"}).digests == ()
    assert residency.make_room(5, busy={"a"}).short_bytes == 5
    assert residency.make_room(15).digests == ("a",)
    assert residency.make_room(15).short_bytes == 5


def test_entitlement_renews_a_place() -> None:
    """Who was named by the newest roster leaves last."""
    residency = Residency(budget_bytes=20)
    residency.admit("a", size_bytes=10, now_s=1.0)
    residency.admit("b", size_bytes=10, now_s=2.0)
    residency.entitle(["a", "unknown"], now_s=3.0)
    assert residency.make_room(10).digests == ("b",)
    assert residency.make_room(20, entitled_before_s=3.0).digests == ("b",)


def test_the_previous_version_outstays_strangers_and_can_be_rolled_back_to() -> None:
    """It leaves after every idle expert; after a roll back it is the current one."""
    residency = Residency(budget_bytes=30)
    residency.admit("old", size_bytes=10, now_s=1.0)
    residency.admit("other", size_bytes=10, now_s=5.0)
    residency.admit("new", size_bytes=10, now_s=6.0, replaces="old")
    assert residency.make_room(10, busy={"new"}).digests == ("other",)
    assert residency.make_room(20, busy={"new"}).digests == ("other", "old")
    residency.entitle(["old"], now_s=7.0)
    assert [one.successor for one in residency.residents] == [None, None, None]
    assert residency.make_room(20).digests == ("other", "new")


def test_only_one_previous_version_is_kept() -> None:
    """With a third version the first one is an idle expert like any other."""
    residency = Residency(budget_bytes=30)
    residency.admit("first", size_bytes=10, now_s=1.0)
    residency.admit("second", size_bytes=10, now_s=2.0, replaces="first")
    residency.admit("third", size_bytes=10, now_s=3.0, replaces="second")
    kept = {one.digest: one.successor for one in residency.residents}
    assert kept == {"first": None, "second": "third", "third": None}
    residency.forget("third")
    assert {one.successor for one in residency.residents} == {None}
    assert residency.size_bytes == 20


def test_without_a_budget_nobody_leaves() -> None:
    """No bound means no eviction."""
    residency = Residency()
    residency.admit("a", size_bytes=10**15, now_s=1.0)
    assert residency.make_room(10**15).digests == ()

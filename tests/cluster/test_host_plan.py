# SPDX-License-Identifier: Apache-2.0
"""What follows from an epoch, as a pure function: masks, drops and loads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.hosting.plan import Plan, Roster, Running, Served, make_plan
from policy.deciding.composition import composition_digest

BASE = "sha256:" + "b" * 64
EXPERTS = tuple(f"sha256:{number:064x}" for number in range(6))
NAMES = ("lab", "desk", "gone")


def served(name: str, experts: frozenset[str], *, asked: int = 2, allowed: bool = True) -> Served:
    """A deployment with these experts."""
    top_k = min(asked, len(experts) + 1)
    return Served(
        deployment=name,
        epoch=3,
        base_digest=BASE,
        experts=tuple(sorted(experts)),
        names={digest: digest[-2:] for digest in experts},
        top_k=top_k,
        composition_digest=composition_digest(BASE, sorted(experts), top_k),
        valid_until_us=None,
        allowed=allowed,
    )


sets = st.frozensets(st.sampled_from(EXPERTS))
rosters = st.builds(
    lambda given_sets, k, allowed: Roster(
        epoch=3,
        served={
            name: served(name, one, asked=k, allowed=allowed or name != "desk")
            for name, one in given_sets.items()
        },
    ),
    st.dictionaries(st.sampled_from(NAMES[:2]), sets),
    st.integers(1, 4),
    st.booleans(),
)
sequences = st.lists(
    st.builds(
        lambda n, name, experts, k: Running(
            key=str(n), deployment=name, experts=tuple(sorted(experts)), top_k=min(k, len(experts) + 1)
        ),
        st.integers(),
        st.sampled_from(NAMES),
        sets,
        st.integers(1, 4),
    ),
    max_size=8,
    unique_by=lambda running: running.key,
)


def after(plan: Plan, running: Running) -> frozenset[str] | None:
    """The set a sequence goes on with; None if it ends."""
    if running.key in plan.end:
        return None
    new = plan.recompose.get(running.key)
    return frozenset(running.experts if new is None else new.experts)


@given(rosters, sets, sequences)
def test_nothing_forbidden_goes_on_and_nothing_permitted_is_taken_away(
    roster: Roster, resident: frozenset[str], running: list[Running]
) -> None:
    """After the plan every sequence runs a permitted set, as large as what is permitted and resident."""
    plan = make_plan(roster, resident, running)
    for sequence in running:
        rule = roster.served.get(sequence.deployment)
        goes_on = after(plan, sequence)
        if rule is None or not rule.allowed:
            assert goes_on is None
            continue
        assert goes_on is not None
        assert goes_on <= set(rule.experts)
        if sequence.key in plan.recompose:
            new = plan.recompose[sequence.key]
            assert goes_on == set(rule.experts) & resident
            assert new.composition_digest == composition_digest(BASE, new.experts, new.top_k)
            assert new.top_k == min(rule.top_k, len(goes_on) + 1)
        else:
            assert set(sequence.experts) <= set(rule.experts)


@given(rosters, sets, sequences)
def test_only_what_nobody_may_use_is_dropped_and_all_that_is_missing_is_loaded(
    roster: Roster, resident: frozenset[str], running: list[Running]
) -> None:
    """Drop and load are the two differences between resident and permitted; running sets are safe."""
    plan = make_plan(roster, resident, running)
    assert (resident | set(plan.load)) - set(plan.drop) == roster.experts
    assert not set(plan.drop) & roster.experts
    kept = [after(plan, sequence) or frozenset() for sequence in running]
    assert not any(one & set(plan.drop) for one in kept)


@given(rosters, sets, sequences)
def test_applying_twice_changes_nothing_more(
    roster: Roster, resident: frozenset[str], running: list[Running]
) -> None:
    """A plan's result needs no further plan."""
    plan = make_plan(roster, resident, running)
    left = [
        Running(
            key=sequence.key,
            deployment=sequence.deployment,
            experts=tuple(sorted(goes_on)),
            top_k=plan.recompose[sequence.key].top_k if sequence.key in plan.recompose else sequence.top_k,
        )
        for sequence in running
        if (goes_on := after(plan, sequence)) is not None
    ]
    again = make_plan(roster, resident - set(plan.drop), left)
    assert (again.end, dict(again.recompose), again.drop) == ((), {}, ())


def test_gain_alone_disturbs_no_running_sequence() -> None:
    """A new expert enters with the next request; prefixes are not computed again for it."""
    roster = Roster(epoch=3, served={"lab": served("lab", frozenset(EXPERTS[:3]))})
    running = [Running(key="1", deployment="lab", experts=EXPERTS[:2], top_k=2)]
    plan = make_plan(roster, EXPERTS[:2], running)
    assert plan == Plan(end=(), recompose={}, drop=(), load=(EXPERTS[2],))


def test_loss_at_equal_k_is_noticed() -> None:
    """Losing an expert recomposes even where k stays the same."""
    roster = Roster(epoch=3, served={"lab": served("lab", frozenset(EXPERTS[1:3]))})
    running = [Running(key="1", deployment="lab", experts=EXPERTS[:3], top_k=2)]
    plan = make_plan(roster, EXPERTS[:3], running)
    assert plan.recompose["1"].experts == EXPERTS[1:3]
    assert plan.drop == EXPERTS[:1]

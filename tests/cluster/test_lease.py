# SPDX-License-Identifier: Apache-2.0
"""Law 9 in values: a lease runs from the sending of the question, and nothing lengthens it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.hosting.gate import ReleaseGate
from cluster.hosting.lease import (
    DRIFT_PPM,
    LEASE_TTL_US,
    Lease,
    OfficeClock,
    WallClockWatch,
    boottime_us,
)

moments = st.integers(0, 10**12)
HELD_US = LEASE_TTL_US - LEASE_TTL_US * DRIFT_PPM // 1_000_000


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now_us: int = 5_000_000) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        """The time."""
        return self.now_us


@given(sent=st.lists(moments, min_size=1, max_size=20), now=moments)
def test_lease_is_that_of_the_latest_question_in_any_order(sent: list[int], now: int) -> None:
    """Answers that arrive out of order neither shorten nor lengthen a lease."""
    lease = Lease()
    for sent_us in sent:
        lease = lease.renewed(sent_us)
    assert lease.sent_us == max(sent)
    assert lease.valid_at(now) == (max(sent) <= now < max(sent) + HELD_US)
    assert lease.remaining_us(now) == (max(sent) + HELD_US - now if lease.valid_at(now) else 0)


def test_lease_counts_from_the_sending_not_from_the_answer() -> None:
    """A question sent at 1 s and answered at 2.9 s leaves 0.1 s."""
    lease = Lease().renewed(1_000_000)
    assert lease.remaining_us(2_900_000) == 100_000 - (LEASE_TTL_US - HELD_US)
    assert not lease.valid_at(1_000_000 + HELD_US)


@given(ttl=st.integers(-10, 10**10))
def test_office_may_shorten_a_lease_never_stretch_it(ttl: int) -> None:
    """No answer makes a lease longer than the law's two seconds."""
    assert Lease().renewed(0, ttl).ttl_us == max(0, min(ttl, LEASE_TTL_US))


def test_without_an_answer_nothing_is_ever_released() -> None:
    """The first lease needs the first answer."""
    assert not Lease().valid_at(boottime_us())


def test_clock_that_runs_backwards_is_not_trusted() -> None:
    """A step back beyond the tolerance is noticed, and expiries are judged by the latest time seen."""
    watch = WallClockWatch().seen(10_000_000)
    assert watch.trusts(9_900_000)
    assert not watch.trusts(9_000_000)
    assert watch.latest_us(9_000_000) == 10_000_000


def test_gate_closes_by_itself() -> None:
    """Lease, expiry, backward clock and seal each close it; renewal and a new roster open it again."""
    boot, wall = Clock(), Clock()
    gate = ReleaseGate(boot_clock=boot, wall_clock=wall)
    assert not gate.is_open()
    gate.renew(boot())
    assert gate.is_open()
    boot.now_us += LEASE_TTL_US
    assert not gate.is_open()
    boot.now_us += 700_000
    assert gate.closed_for_us() == LEASE_TTL_US + 700_000  # nobody had looked since it was open
    gate.renew(boot())
    gate.expire_at(wall() + 10)
    assert gate.is_open()
    wall.now_us += 10
    assert not gate.is_open()
    gate.expire_at(None)
    assert gate.is_open()
    wall.now_us -= 300_000
    assert not gate.is_open()
    wall.now_us += 300_000
    assert gate.is_open()
    gate.seal()
    assert not gate.is_open()


@given(sent=st.integers(0, 10**9), passed=st.integers(0, 10**7), slow_ppm=st.integers(0, DRIFT_PPM))
def test_a_slow_clock_never_stretches_a_lease(sent: int, passed: int, slow_ppm: int) -> None:
    """While a clock that runs slow within the bound shows a valid lease, its length has not passed."""
    shown = passed * (1_000_000 - slow_ppm) // 1_000_000
    if Lease().renewed(sent).valid_at(sent + shown):
        assert passed < LEASE_TTL_US


@given(
    received=st.integers(1, 10**12),
    late=st.integers(0, 10**7),
    passed=st.integers(0, 10**8),
    slow_ppm=st.integers(0, DRIFT_PPM),
)
def test_time_bounds_are_never_judged_earlier_than_by_the_offices_clock(
    received: int, late: int, passed: int, slow_ppm: int
) -> None:
    """However long a question was under way and however slow the clock here: the bound is no lower."""
    sent = 7_000_000
    shown = sent + (late + passed) * (1_000_000 - slow_ppm) // 1_000_000
    assert OfficeClock().heard(received, sent).latest_us(shown) >= received + passed


def test_a_host_whose_clock_is_behind_expires_by_the_offices() -> None:
    """A wall clock an hour behind keeps no expert a moment longer; without an answer it counts alone."""
    boot, wall = Clock(), Clock(10_000_000_000)
    gate = ReleaseGate(boot_clock=boot, wall_clock=wall)
    assert gate.judge_time_us() == wall()
    office_us = wall() + 3_600_000_000
    gate.renew(boot(), None, office_us)
    gate.expire_at(office_us + 500_000)
    assert gate.is_open()
    boot.now_us += 500_000
    wall.now_us += 500_000
    assert not gate.is_open()
    assert gate.judge_time_us() >= office_us + 500_000


def test_the_office_is_heard_by_the_question_sent_last() -> None:
    """Its clock may be set forwards; an answer that comes late does not bring the old time back."""
    clock = OfficeClock().heard(1_000, 50).heard(9_000, 60).heard(1_100, 55)
    assert clock == OfficeClock(received_us=9_000, sent_us=60)
    assert OfficeClock().latest_us(123) == 0

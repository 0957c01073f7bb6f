# SPDX-License-Identifier: Apache-2.0
"""How long a host may keep releasing tokens without news from the register (law 9).

A lease runs from the moment the host *sent* the question that was answered last, on a clock that also counts
the time in which the machine was suspended. The bound that follows: the office reads its epoch after it
received a question, so whoever holds a valid lease has heard of every epoch committed before the lease began,
and ``ttl_us`` after a commit no host that missed it holds a valid lease. A clock may run slow by
``drift_ppm``, so a host holds its lease shorter by that.

Everything here is a value; nothing knows the office or a thread. ``docs/protocol.md`` shows the whole.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

#: Length of a lease when the office does not say a shorter one.
LEASE_TTL_US = 2_000_000
#: How much slower than the office's a host's boot clock may run. Clock discipline slews by 500 at most, and
#: quartz itself is better than 200.
DRIFT_PPM = 1_000
_PPM = 1_000_000


def boottime_us() -> int:
    """Microseconds since boot, time in suspension included; never set back."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000


def wall_us() -> int:
    """Microseconds since the Unix epoch (UTC)."""
    return time.time_ns() // 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """Permission to release tokens until ``sent_us + ttl_us``, less the drift, on the boot clock.

    Attributes:
        sent_us: boot clock when the last answered question was sent; None before the first answer.
        ttl_us: length by the office's clock.
        drift_ppm: how much slower the boot clock may run.
    """

    sent_us: int | None = None
    ttl_us: int = LEASE_TTL_US
    drift_ppm: int = DRIFT_PPM

    @property
    def held_us(self) -> int:
        """Length by the boot clock: while it shows this much, at most ``ttl_us`` have passed."""
        return self.ttl_us * (_PPM - self.drift_ppm) // _PPM

    def renewed(self, sent_us: int, ttl_us: int | None = None) -> Lease:
        """The lease after an answer to a question sent at ``sent_us``.

        Answers may arrive out of order: an older question never shortens or lengthens a newer lease. The
        office may shorten the length, never stretch it beyond ``LEASE_TTL_US``.
        """
        if self.sent_us is not None and sent_us <= self.sent_us:
            return self
        length_us = LEASE_TTL_US if ttl_us is None else max(0, min(ttl_us, LEASE_TTL_US))
        return replace(self, sent_us=sent_us, ttl_us=length_us)

    def valid_at(self, now_us: int) -> bool:
        """True while tokens may be released. A clock that reads before ``sent_us`` cannot be trusted."""
        return self.sent_us is not None and self.sent_us <= now_us < self.sent_us + self.held_us

    def remaining_us(self, now_us: int) -> int:
        """Microseconds left, 0 when invalid."""
        if self.sent_us is None or not self.valid_at(now_us):
            return 0
        return self.sent_us + self.held_us - now_us


@dataclass(frozen=True, kw_only=True, slots=True)
class WallClockWatch:
    """Notices a wall clock that runs backwards, for ``valid_until`` expires on that clock.

    Attributes:
        highest_us: the latest wall time seen.
        tolerance_us: steps back up to this are clock discipline, not a lie.
    """

    highest_us: int = 0
    tolerance_us: int = 250_000

    def seen(self, now_us: int) -> WallClockWatch:
        """The watch after a reading."""
        return replace(self, highest_us=max(self.highest_us, now_us))

    def trusts(self, now_us: int) -> bool:
        """False while the clock reads earlier than it already did; private experts are refused then."""
        return now_us >= self.highest_us - self.tolerance_us

    def latest_us(self, now_us: int) -> int:
        """The time to judge expiries by: never earlier than a time already seen."""
        return max(self.highest_us, now_us)


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficeClock:
    """The latest that the office's clock can show, from one answer: time bounds are given by that clock.

    The office received a question after it was sent, so what its clock showed then plus what has passed here
    since the sending is never too early. How long the office waited before it answered plays no part.

    Attributes:
        received_us: the office's clock when it received the question; 0 before the first answer.
        sent_us: boot clock when the question was sent.
        drift_ppm: how much slower the boot clock may run.
    """

    received_us: int = 0
    sent_us: int = 0
    drift_ppm: int = DRIFT_PPM

    def latest_us(self, boot_us: int) -> int:
        """The office's clock shows at most this when the boot clock shows ``boot_us``; 0 if unknown."""
        if not self.received_us:
            return 0
        passed_us = max(0, boot_us - self.sent_us)
        # Plus one, for readings are rounded down.
        return self.received_us + 1 - (-passed_us * _PPM // (_PPM - self.drift_ppm))

    def heard(self, received_us: int, sent_us: int) -> OfficeClock:
        """The bound after one more answer: that of the question sent last, for that clock may be set, too."""
        if not received_us or sent_us < self.sent_us:
            return self
        return replace(self, received_us=received_us, sent_us=sent_us)


@dataclass(frozen=True, kw_only=True, slots=True)
class GateFacts:
    """Everything that decides whether a token may leave a host, and the decision.

    Attributes:
        lease: of the last answer.
        watch: highest wall time seen.
        office: bound of the office's clock.
        expires_at_us: first moment at which an expert in force has to leave; None: none within this epoch.
        sealed: closed for good.
    """

    lease: Lease = Lease()
    watch: WallClockWatch = WallClockWatch()
    office: OfficeClock = OfficeClock()
    expires_at_us: int | None = None
    sealed: bool = False

    def renewed(self, sent_us: int, ttl_us: int | None, office_received_us: int = 0) -> GateFacts:
        """The facts after an answer to the question that was sent at ``sent_us`` (boot clock)."""
        return replace(
            self,
            lease=self.lease.renewed(sent_us, ttl_us),
            office=self.office.heard(office_received_us, sent_us),
        )

    def seen(self, wall_us: int) -> GateFacts:
        """The facts after a look at the wall clock."""
        return replace(self, watch=self.watch.seen(wall_us))

    def judge_time_us(self, boot_us: int, wall_us: int) -> int:
        """The time by which bounds are judged: never earlier than the office's clock or a time seen here."""
        return max(self.watch.latest_us(wall_us), self.office.latest_us(boot_us))

    def opens(self, boot_us: int, wall_us: int) -> bool:
        """True if a token may be released at this moment."""
        return (
            not self.sealed
            and self.watch.trusts(wall_us)
            and self.lease.valid_at(boot_us)
            and (self.expires_at_us is None or self.judge_time_us(boot_us, wall_us) < self.expires_at_us)
        )

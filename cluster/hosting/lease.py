# SPDX-License-Identifier: Apache-2.0
"""How long a host may keep releasing tokens without news from the register (law 9).

A lease runs from the moment the host *sent* the question that was answered last, on a clock that also counts
the time in which the machine was suspended. A lease is a value; it knows neither the office nor a thread.
The bound that follows: the office reads its epoch after it received a question, so whoever holds a valid
lease has heard of every epoch committed before the lease began, and ``ttl_us`` after a commit no host that
missed it holds a valid lease.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

#: Length of a lease when the office does not say a shorter one.
LEASE_TTL_US = 2_000_000


def boottime_us() -> int:
    """Microseconds since boot, time in suspension included; never set back."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000


def wall_us() -> int:
    """Microseconds since the Unix epoch (UTC)."""
    return time.time_ns() // 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """Permission to release tokens until ``sent_us + ttl_us`` on the boot clock.

    Attributes:
        sent_us: boot clock when the last answered question was sent; None before the first answer.
        ttl_us: length.
    """

    sent_us: int | None = None
    ttl_us: int = LEASE_TTL_US

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
        return self.sent_us is not None and self.sent_us <= now_us < self.sent_us + self.ttl_us

    def remaining_us(self, now_us: int) -> int:
        """Microseconds left, 0 when invalid."""
        if self.sent_us is None or not self.valid_at(now_us):
            return 0
        return self.sent_us + self.ttl_us - now_us


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

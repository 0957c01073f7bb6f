# SPDX-License-Identifier: Apache-2.0
"""The gate that every token passes twice: at the end of its step and right before it is released.

It is open while the host holds a valid lease, no expert's time has run out since the roster was made, and
the wall clock has not run backwards. Written by the register's link, read by the engine thread and by every
stream; all fields are replaced whole, so readers need no lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from cluster.hosting.lease import Lease, WallClockWatch, boottime_us, wall_us


class ReleaseGate:
    """Says whether tokens may leave this host now.

    Args:
        boot_clock: microseconds on a clock that counts suspension.
        wall_clock: microseconds since the Unix epoch.
    """

    def __init__(
        self, *, boot_clock: Callable[[], int] = boottime_us, wall_clock: Callable[[], int] = wall_us
    ) -> None:
        self._boot_clock = boot_clock
        self._wall_clock = wall_clock
        self._lease = Lease()
        self._watch = WallClockWatch()
        self._expires_at_us: int | None = None
        self._closed_since_us = boot_clock()
        self._sealed = False
        self._mutex = threading.Lock()

    @property
    def lease(self) -> Lease:
        """The lease in force."""
        return self._lease

    def renew(self, sent_us: int, ttl_us: int | None = None) -> None:
        """Takes an answer to a question that was sent at ``sent_us`` (boot clock)."""
        with self._mutex:
            self._lease = self._lease.renewed(sent_us, ttl_us)

    def expire_at(self, at_us: int | None) -> None:
        """Closes the gate at this wall time, until a new roster sets another one."""
        self._expires_at_us = at_us

    def seal(self) -> None:
        """Closes the gate for good (the host ends)."""
        self._sealed = True

    @property
    def sealed(self) -> bool:
        """True once the gate is closed for good."""
        return self._sealed

    def now_boot_us(self) -> int:
        """The boot clock."""
        return self._boot_clock()

    def judge_time_us(self) -> int:
        """Wall time to judge consents by: never earlier than a time already seen."""
        now_us = self._wall_clock()
        with self._mutex:
            self._watch = self._watch.seen(now_us)
            return self._watch.latest_us(now_us)

    @property
    def clock_trusted(self) -> bool:
        """False while the wall clock reads earlier than it already did."""
        return self._watch.trusts(self._wall_clock())

    def is_open(self) -> bool:
        """True if a token may be released at this moment."""
        now_us = self._boot_clock()
        wall_now_us = self._wall_clock()
        expires_at_us = self._expires_at_us
        with self._mutex:
            trusted = self._watch.trusts(wall_now_us)
            self._watch = self._watch.seen(wall_now_us)
        opened = (
            not self._sealed
            and trusted
            and self._lease.valid_at(now_us)
            and (expires_at_us is None or wall_now_us < expires_at_us)
        )
        if opened:
            self._closed_since_us = now_us
        return opened

    def closed_for_us(self) -> int:
        """How long the gate has been closed when last looked at; 0 while open."""
        return 0 if self.is_open() else self._boot_clock() - self._closed_since_us

# SPDX-License-Identifier: Apache-2.0
"""The gate that every token passes twice: at the end of its step and right before it is released.

It is open while the host holds a valid lease, no expert's time has run out since the roster was made, and
the wall clock has not run backwards. Written by the register's link, read by the engine thread and by every
stream; all fields are replaced whole, so readers need no lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from cluster.hosting.lease import GateFacts, boottime_us, wall_us

# The gate is looked at several times a step by every stream; the highest wall time need not be that exact.
_NOTE_EVERY_US = 10_000


class ReleaseGate:
    """Says whether tokens may leave this host now; the decision itself is ``GateFacts.opens``.

    Args:
        boot_clock: microseconds on a clock that counts suspension.
        wall_clock: microseconds since the Unix epoch.
    """

    def __init__(
        self, *, boot_clock: Callable[[], int] = boottime_us, wall_clock: Callable[[], int] = wall_us
    ) -> None:
        self._boot_clock = boot_clock
        self._wall_clock = wall_clock
        self._facts = GateFacts()
        self._closed_since_us = boot_clock()
        self._mutex = threading.Lock()

    @property
    def facts(self) -> GateFacts:
        """What the gate decides by."""
        return self._facts

    def renew(self, sent_us: int, ttl_us: int | None = None, office_received_us: int = 0) -> None:
        """Takes an answer to a question that was sent at ``sent_us`` (boot clock)."""
        with self._mutex:
            self._facts = self._facts.renewed(sent_us, ttl_us, office_received_us)

    def expire_at(self, at_us: int | None) -> None:
        """Closes the gate at this wall time, until a new roster sets another one."""
        with self._mutex:
            self._facts = replace(self._facts, expires_at_us=at_us)

    def seal(self) -> None:
        """Closes the gate for good (the host ends)."""
        with self._mutex:
            self._facts = replace(self._facts, sealed=True)

    @property
    def sealed(self) -> bool:
        """True once the gate is closed for good."""
        return self._facts.sealed

    def now_boot_us(self) -> int:
        """The boot clock."""
        return self._boot_clock()

    def judge_time_us(self) -> int:
        """Time to judge consents by: never earlier than the office's clock or a time already seen."""
        return self._look()[0].judge_time_us(self._boot_clock(), self._wall_clock())

    def is_open(self) -> bool:
        """True if a token may be released at this moment."""
        facts, boot_us, wall_now_us = self._look()
        opened = facts.opens(boot_us, wall_now_us)
        if opened:
            self._closed_since_us = boot_us
        return opened

    def closed_for_us(self) -> int:
        """How long the gate has been closed when last looked at; 0 while open."""
        return 0 if self.is_open() else self._boot_clock() - self._closed_since_us

    def _look(self) -> tuple[GateFacts, int, int]:
        boot_us, wall_now_us = self._boot_clock(), self._wall_clock()
        if wall_now_us > self._facts.watch.highest_us + _NOTE_EVERY_US:
            with self._mutex:
                self._facts = self._facts.seen(wall_now_us)
        return self._facts, boot_us, wall_now_us

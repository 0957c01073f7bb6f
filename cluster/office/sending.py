# SPDX-License-Identifier: Apache-2.0
"""One epoch as it is sent to hosts: whole, or as what changed since the one that they have.

Each form is written once, however many hosts ask. Several threads may ask at the same time; the worst that
comes of it is that a form is written twice. It does not know who asks.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from policy.epochs import archive
from policy.facts.snapshot import Snapshot


class Sending:
    """The forms of one epoch.

    Args:
        snapshot: of the epoch.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._changes: dict[int, bytes | None] = {}

    @cached_property
    def whole(self) -> bytes:
        """Its canonical bytes."""
        return self.snapshot.to_json()

    def changes(self, session: Any, seen_epoch: int, seen_digest: str) -> bytes | None:
        """What leads here from an earlier epoch; None from this one, and where it is not known.

        Args:
            session: an open unit of work.
            seen_epoch: the earlier one.
            seen_digest: of its snapshot.
        """
        if not 0 < seen_epoch < self.snapshot.epoch:
            return None
        if seen_epoch not in self._changes:
            way = archive.delta(session, (seen_epoch, seen_digest), self.snapshot)
            self._changes[seen_epoch] = None if way is None else way.to_json()
        return self._changes[seen_epoch]

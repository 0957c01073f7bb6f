# SPDX-License-Identifier: Apache-2.0
"""Published epochs, word of them, and the servers that run them."""

from __future__ import annotations

from policy.records.record import Record


class Publication(Record):
    """One epoch: why it came, and the digest of what it froze."""

    epoch: int
    at_us: int
    snapshot_digest: str
    reason: str
    subject: str
    principal_id: str | None
    change_id: str | None


class Announcement(Record):
    """What is told of an epoch to whoever listens: that it came, why, and the digest of what it froze."""

    epoch: int
    snapshot_digest: str
    reason: str
    at_us: int


class AcknowledgementRecord(Record):
    """A server runs what an epoch permits."""

    server_id: str
    epoch: int
    snapshot_digest: str
    compositions: dict[str, str]
    at_us: int


class ServerRecord(Record):
    """A server and the highest epoch that it acknowledged."""

    server_id: str
    epoch: int
    first_at_us: int
    last_at_us: int

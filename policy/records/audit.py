# SPDX-License-Identifier: Apache-2.0
"""The audit: its records, reports and checkpoints."""

from __future__ import annotations

from typing import Any, Literal

from policy.records.record import Record


class AuditRecord(Record):
    """One link of the audit chain."""

    seq: int
    at_us: int
    actor: str
    action: str
    object: str
    facts: dict[str, Any]
    prev_hash: str
    leaf_hash: str


class AuditReport(Record):
    """What verifying a chain found.

    Attributes:
        ok: every link holds and every checkpoint given agrees.
        length: number of records read.
        first_bad: sequence number of the first record that does not hold.
        reason: what is wrong with it, a stable word.
        tail: ``proven`` up to the last checkpoint given, or ``not proven`` without one.
        head: leaf of the last record.
        bad: the first records that do not hold, each as ``table key``, in the order of the chain.
        sentence: what is wrong with the first of them, or that nothing is.
        rows: stored rows that were held against the seals.
        seals: seals that hold, from the first on.
        seals_root: root of the tree over them.
    """

    ok: bool
    length: int
    first_bad: int | None
    reason: str
    tail: Literal["proven", "not proven"]
    head: str
    bad: tuple[str, ...] = ()
    sentence: str = ""
    rows: int = 0
    seals: int = 0
    seals_root: str = ""


class Checkpoint(Record):
    """A signed statement that the chain had this length and head; kept outside the database.

    Attributes:
        length: records of the audit chain.
        head: leaf of its last record.
        at_us: when this was stated.
        key_id: short name of the key.
        public_key: whose signature it is.
        signature: over all of it.
        seals: seals over all stored rows, the chain's included.
        seals_root: root of the tree over them.
        note: the same as a signed note, the text that belongs into a file (C2SP ``tlog-checkpoint``).
    """

    length: int
    head: str
    at_us: int
    key_id: str
    public_key: str
    signature: str
    seals: int = 0
    seals_root: str = ""
    note: str = ""

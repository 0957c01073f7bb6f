# SPDX-License-Identifier: Apache-2.0
"""Seals rows that a new release found or changed: those of before there were seals, and those it migrated.

A migration moves rows without a unit of work, so the seals no longer speak of them as they are. Adopting
says so in the chain, with the schema's revision and how many rows; whoever verifies sees that it happened
and when. What was tampered with before an upgrade is adopted with the rest: verify first, then upgrade.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from policy.audit.chain import Audit
from policy.audit.sealing import Entry, append_seal
from policy.audit.verifying import Expected, sealed_tables, stored_rows, stored_seals

_AT_ONCE = 20_000


def adopt(session: Session, revision: str, now_us: int) -> int:
    """Seals every row as it is now, where the seals say otherwise.

    Args:
        session: a unit of work that sees every tenant's rows.
        revision: of the schema that the rows have now.
        now_us: its time.

    Returns:
        How many rows were adopted.
    """
    expected = Expected()
    expected.read(stored_seals(session))
    adopted = 0
    for table in sealed_tables():
        digests = dict(stored_rows(session, table))
        changed = [
            Entry(table=table.name, key=bad.key, digest=digests[bad.key].hex())
            for bad in expected.hold(table.name, digests.items())
        ]
        adopted += _seal(session, changed, now_us)
    gone = [Entry(table=bad.table, key=bad.key, digest=None) for bad in expected.left()]
    adopted += _seal(session, gone, now_us)
    if adopted:
        Audit(session, now_us).append("platform", "seals.adopt", f"schema:{revision}", {"rows": adopted})
    return adopted


def _seal(session: Session, entries: list[Entry], now_us: int) -> int:
    for start in range(0, len(entries), _AT_ONCE):
        append_seal(session, entries[start : start + _AT_ONCE], now_us)
    return len(entries)

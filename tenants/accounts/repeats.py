# SPDX-License-Identifier: Apache-2.0
"""Answers kept for idempotency keys, so that a write sent twice happens once.

The answer is stored in the unit of work that did the write: both exist or neither. Keys belong to one
principal; what another one sends under the same key is another key. Knows nothing of operations.
"""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from sqlalchemy import delete
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes, digest_bytes
from tenants.accounts.database import lock_for_writing
from tenants.accounts.tables import RepeatRow
from tenants.errors import IdempotencyConflict

KEPT_US: Final = 7 * 24 * 3600 * 1_000_000


class Repeat(BaseModel):
    """A write under a key: ``answer`` is set when it was done before."""

    model_config = ConfigDict(frozen=True)

    principal_id: str
    idempotency_key: str
    operation: str
    payload_digest: str
    answer: dict[str, Any] | None = None


class Repeats:
    """The room of kept answers, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def begin(
        self, principal_id: str, idempotency_key: str, operation: str, payload: dict[str, Any]
    ) -> Repeat:
        """Looks whether this write was done before; a second sender of the same key waits for the first.

        Raises:
            IdempotencyConflict: the key was used for another write, or its answer was a secret.
        """
        lock_for_writing(self._session, f"repeat:{principal_id}:{idempotency_key}")
        repeat = Repeat(
            principal_id=principal_id,
            idempotency_key=idempotency_key,
            operation=operation,
            payload_digest=digest_bytes(canonical_bytes(payload)),
        )
        row = self._session.get(RepeatRow, (principal_id, idempotency_key))
        if row is None:
            return repeat
        if (row.operation, row.payload_digest) != (operation, repeat.payload_digest):
            raise IdempotencyConflict(
                "This idempotency key was used for another request; use a new key for a new request.",
                idempotency_key=idempotency_key,
            )
        if row.answer is None:
            raise IdempotencyConflict(
                "This request was done, but its answer held a secret that is shown once. If it was lost, "
                "revoke what was made and make another under a new idempotency key.",
                idempotency_key=idempotency_key,
            )
        return repeat.model_copy(update={"answer": json.loads(row.answer)})

    def keep(self, repeat: Repeat, answer: dict[str, Any] | None) -> None:
        """Keeps the answer of a write that was just done; None keeps only that it was done."""
        self._session.add(
            RepeatRow(
                principal_id=repeat.principal_id,
                idempotency_key=repeat.idempotency_key,
                operation=repeat.operation,
                payload_digest=repeat.payload_digest,
                answer=None if answer is None else json.dumps(answer),
                at_us=self._now_us,
            )
        )
        self._session.flush()

    def forget_old(self) -> None:
        """Drops answers older than a week; nobody repeats a request that late."""
        self._session.execute(delete(RepeatRow).where(RepeatRow.at_us < self._now_us - KEPT_US))

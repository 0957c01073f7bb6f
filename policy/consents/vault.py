# SPDX-License-Identifier: Apache-2.0
"""The one place for what names a person: who consented, and what shows that they did.

Everything else (records, changes, the audit chain) holds a salted hash. Salt and text lie in a table from
which they are erased together; then nobody can tell whom the hash stood for, not even by trying every name,
and every chain over the hashes still verifies. It knows neither consents nor who may look.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from sqlalchemy import select
from sqlalchemy.orm import Session

from policy.tables.consents import VaultRow

_SALT_BYTES = 32


class Vault:
    """The vault, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def keep(self, tenant: str, kind: str, text: str) -> str:
        """Keeps a text and answers the reference that stands for it everywhere else.

        Each has a salt of its own: two references to the same person do not show that they are the same.
        """
        salt = secrets.token_hex(_SALT_BYTES)
        ref = reference(salt, kind, text)
        self._session.add(
            VaultRow(ref=ref, tenant=tenant, kind=kind, salt=salt, text=text, at_us=self._now_us)
        )
        self._session.flush()
        return ref

    def read(self, ref: str | None) -> str | None:
        """The text behind a reference; None where it was erased."""
        row = None if ref is None else self._session.get(VaultRow, ref)
        return None if row is None else row.text

    def holds(self, ref: str) -> bool:
        """Whether the text behind a reference is still kept."""
        return self._session.scalar(select(VaultRow.ref).where(VaultRow.ref == ref)) is not None

    def find(self, tenant: str, kind: str, text: str) -> list[str]:
        """The references under which a tenant keeps this very text; reads all of that tenant's salts."""
        query = select(VaultRow.ref, VaultRow.salt).where(VaultRow.tenant == tenant, VaultRow.kind == kind)
        rows = self._session.execute(query.order_by(VaultRow.at_us, VaultRow.ref))
        return [ref for ref, salt in rows if hmac.compare_digest(reference(salt, kind, text), ref)]

    def erase(self, ref: str) -> bool:
        """Forgets salt and text; False where there was nothing to forget."""
        row = self._session.get(VaultRow, ref)
        if row is None:
            return False
        self._session.delete(row)
        self._session.flush()
        return True


def reference(salt: str, kind: str, text: str) -> str:
    """The salted hash of a text; ``kind`` keeps a name from being compared with a document."""
    digest = hmac.new(bytes.fromhex(salt), f"{kind}\0{text}".encode(), hashlib.sha256)
    return "salted-sha256:" + digest.hexdigest()

# SPDX-License-Identifier: Apache-2.0
"""Rows of the audit chain."""

from __future__ import annotations

from sqlalchemy.orm import Mapped, mapped_column

from tenants.accounts.schema import Base


class AuditRow(Base):
    """One link of the audit chain."""

    __tablename__ = "audit"

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at_us: Mapped[int]
    actor: Mapped[str]
    action: Mapped[str]
    object: Mapped[str]
    facts: Mapped[str]
    prev_hash: Mapped[str]
    leaf_hash: Mapped[str]

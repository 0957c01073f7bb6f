# SPDX-License-Identifier: Apache-2.0
"""Rows of the seals: what every unit of work wrote, as digests, one seal naming the one before it."""

from __future__ import annotations

from sqlalchemy.orm import Mapped, mapped_column

from tenants.accounts.schema import Base


class SealRow(Base):
    """The digests of the rows that one or several units of work wrote, deflated."""

    __tablename__ = "seals"

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at_us: Mapped[int]
    rows: Mapped[int]
    root: Mapped[str]
    document: Mapped[bytes]
    document_digest: Mapped[str]
    prev_hash: Mapped[str]
    leaf_hash: Mapped[str]


class SealDraftRow(Base):
    """Digests that wait for the next seal: of writers that did not wait for another's."""

    __tablename__ = "seal_drafts"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    document: Mapped[bytes]

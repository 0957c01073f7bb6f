# SPDX-License-Identifier: Apache-2.0
"""Rows of consent records: notices, records with their events, and the vault of what names a person."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from tenants.accounts.isolation import owned
from tenants.accounts.schema import STRICT, Base
from tenants.accounts.tables import PrincipalRow, TenantRow

_TENANT = TenantRow.__table__.c.slug
_PRINCIPAL = PrincipalRow.__table__.c.id


class NoticeRow(Base):
    """A notice, addressed by what it says."""

    __tablename__ = "notices"
    __isolation__ = owned("tenant")

    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT), primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    document: Mapped[str]
    at_us: Mapped[int]


class ConsentFileRow(Base):
    """A consent record: what was written down; the word that it led to is in ``consents``."""

    __tablename__ = "consent_records"
    __isolation__ = owned("tenant")
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "notice_digest"], ["notices.tenant", "notices.digest"]),
        STRICT,
    )

    record_id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    notice_digest: Mapped[str | None]  # NULL: nothing was shown, or nobody wrote down what
    document: Mapped[str]
    at_us: Mapped[int]


class ConsentFileEventRow(Base):
    """One event in the life of a consent record."""

    __tablename__ = "consent_record_events"
    __isolation__ = owned("tenant")
    __table_args__ = (
        CheckConstraint(
            "event IN ('requested', 'refused', 'given', 'renewed', 'withdrawn', 'revoked', 'expired', "
            "'invalidated')",
            name="event",
        ),
        ForeignKeyConstraint(["tenant", "notice_digest"], ["notices.tenant", "notices.digest"]),
        Index("ix_consent_record_events_consent_id", "consent_id"),
        STRICT,
    )

    record_id: Mapped[str] = mapped_column(ForeignKey("consent_records.record_id"), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    event: Mapped[str]
    at_us: Mapped[int]
    principal_id: Mapped[str | None] = mapped_column(ForeignKey(_PRINCIPAL))  # NULL: time itself
    channel: Mapped[str]
    notice_digest: Mapped[str | None]  # NULL: nothing new was shown
    evidence_ref: Mapped[str | None]  # NULL: none was kept; no foreign key, since the vault forgets
    consent_id: Mapped[str | None] = mapped_column(ForeignKey("consents.id"))  # NULL: there is no word yet
    epoch: Mapped[int | None]  # NULL: nothing was published


class VaultRow(Base):
    """What names a person, with the salt of the hash that stands for it; the one table that forgets."""

    __tablename__ = "personal_vault"
    __isolation__ = owned("tenant")
    __table_args__ = (Index("ix_personal_vault_tenant", "tenant"), STRICT)

    ref: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    kind: Mapped[str]
    salt: Mapped[str]
    text: Mapped[str]
    at_us: Mapped[int]

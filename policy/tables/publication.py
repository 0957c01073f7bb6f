# SPDX-License-Identifier: Apache-2.0
"""Rows of how the register moves: changes, epochs, their snapshots and who acknowledged them."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from tenants.accounts.isolation import SHARED, owned
from tenants.accounts.schema import STRICT, Base
from tenants.accounts.tables import PrincipalRow, TenantRow

# Keys point down to the account rooms; taken from the classes, so that those tables are declared first.
_TENANT = TenantRow.__table__.c.slug
_PRINCIPAL = PrincipalRow.__table__.c.id


class PublicationRow(Base):
    """One epoch."""

    __tablename__ = "publications"
    __isolation__ = SHARED
    __table_args__ = (CheckConstraint("epoch >= 1", name="epoch"), STRICT)

    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at_us: Mapped[int]
    snapshot_digest: Mapped[str]
    reason: Mapped[str]
    subject: Mapped[str]
    principal_id: Mapped[str | None] = mapped_column(ForeignKey(_PRINCIPAL))  # NULL: founding of the register
    change_id: Mapped[str | None] = mapped_column(ForeignKey("changes.id"))  # NULL: a narrowing needs none


class SnapshotRow(Base):
    """The canonical bytes of an epoch's snapshot, deflated."""

    __tablename__ = "snapshots"
    __isolation__ = SHARED

    epoch: Mapped[int] = mapped_column(
        ForeignKey("publications.epoch"), primary_key=True, autoincrement=False
    )
    document: Mapped[bytes]


class ChangeRow(Base):
    """A draft of edits on its way to publication."""

    __tablename__ = "changes"
    __isolation__ = owned("tenant")
    __table_args__ = (
        CheckConstraint("state IN ('proposed', 'approved', 'rejected')", name="state"),
        # Four eyes, whatever the code above does.
        CheckConstraint(
            "state <> 'approved' OR (decided_by IS NOT NULL AND decided_by <> author_id)", name="four_eyes"
        ),
        STRICT,
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    title: Mapped[str]
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    author_id: Mapped[str] = mapped_column(ForeignKey(_PRINCIPAL))
    author_name: Mapped[str]
    items: Mapped[str]
    digest: Mapped[str]
    state: Mapped[str]
    created_at_us: Mapped[int]
    decided_by: Mapped[str | None] = mapped_column(ForeignKey(_PRINCIPAL))  # NULL: not decided
    decided_at_us: Mapped[int | None]  # NULL: not decided
    comment: Mapped[str]
    epoch: Mapped[int | None]  # NULL: not published
    # What the state alone does not say: scheduled, withdrawn, failed, revised. Empty: nothing more.
    stage: Mapped[str] = mapped_column(server_default="")
    effective_at_us: Mapped[int | None]  # NULL: published with its approval
    rolls_back: Mapped[str | None]  # NULL: undoes no earlier change; no foreign key, as in reservations


class ServerRow(Base):
    """A model host and the highest epoch that it acknowledged."""

    __tablename__ = "servers"
    __isolation__ = SHARED

    server_id: Mapped[str] = mapped_column(primary_key=True)
    epoch: Mapped[int]
    first_at_us: Mapped[int]
    last_at_us: Mapped[int]


class AcknowledgementRow(Base):
    """A model host runs what an epoch permits."""

    __tablename__ = "acknowledgements"
    __isolation__ = SHARED

    server_id: Mapped[str] = mapped_column(ForeignKey("servers.server_id"), primary_key=True)
    epoch: Mapped[int] = mapped_column(
        ForeignKey("publications.epoch"), primary_key=True, autoincrement=False
    )
    snapshot_digest: Mapped[str]
    compositions: Mapped[str]
    at_us: Mapped[int]

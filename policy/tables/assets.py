# SPDX-License-Identifier: Apache-2.0
"""Rows of what is on offer: bases, experts and their lineage, listings, licenses and deployments."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from tenants.accounts.isolation import SHARED, owned, part_of
from tenants.accounts.schema import STRICT, Base
from tenants.accounts.tables import DatasetRow, JobRow, TenantRow

# Keys point down to the account rooms; taken from the classes, so that those tables are declared first.
_TENANT = TenantRow.__table__.c.slug
_DATASET = DatasetRow.__table__.c.id
_JOB = JobRow.__table__.c.id


class BaseRow(Base):
    """A frozen public model that experts attach to."""

    __tablename__ = "bases"
    __isolation__ = SHARED

    base_digest: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    license: Mapped[str]
    status: Mapped[str]
    manifest: Mapped[str]
    added_at_us: Mapped[int]


class ExpertRow(Base):
    """One version of an expert."""

    __tablename__ = "experts"
    __isolation__ = owned("tenant", open_where={"state": "listed"})
    __table_args__ = (
        UniqueConstraint("tenant", "name", "version"),
        UniqueConstraint("bundle_digest"),
        CheckConstraint("state IN ('sealed', 'listed', 'suspended', 'erased')", name="state"),
        STRICT,
    )

    expert_id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    name: Mapped[str]
    version: Mapped[int]
    bundle_digest: Mapped[str]
    base_digest: Mapped[str] = mapped_column(ForeignKey("bases.base_digest"))
    manifest: Mapped[str]
    job_id: Mapped[str | None] = mapped_column(ForeignKey(_JOB))  # NULL: brought in, not trained here
    state: Mapped[str]
    admitted_at_us: Mapped[int]


class ExpertDatasetRow(Base):
    """Lineage: an expert was trained on a dataset."""

    __tablename__ = "expert_datasets"
    __isolation__ = part_of(ExpertRow, expert_id="expert_id")

    expert_id: Mapped[str] = mapped_column(ForeignKey("experts.expert_id"), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey(_DATASET), primary_key=True)


class ListingRow(Base):
    """Price and license of an expert from an epoch on."""

    __tablename__ = "listings"
    __isolation__ = part_of(ExpertRow, shared=True, expert_id="expert_id")

    expert_id: Mapped[str] = mapped_column(ForeignKey("experts.expert_id"), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    price_micro_per_1k_tokens: Mapped[int]
    license: Mapped[str]
    at_us: Mapped[int]


class LicenseRow(Base):
    """Reviewed facets of a license, from a version on; the highest version counts."""

    __tablename__ = "licenses"
    __isolation__ = SHARED

    key: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    facets: Mapped[str]
    at_us: Mapped[int]


class DeploymentRow(Base):
    """A named endpoint as it stands; every earlier form is in the snapshots."""

    __tablename__ = "deployments"
    __isolation__ = owned("tenant")
    __table_args__ = (CheckConstraint("state IN ('live', 'removed')", name="state"), STRICT)

    name: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    base_digest: Mapped[str] = mapped_column(ForeignKey("bases.base_digest"))
    document: Mapped[str]
    state: Mapped[str]
    at_us: Mapped[int]
    version: Mapped[int] = mapped_column(server_default="1")  # counts the forms that were put

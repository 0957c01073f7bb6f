# SPDX-License-Identifier: Apache-2.0
"""Rows of the account rooms: tenants, principals, keys, datasets and jobs. Rows never leave these rooms."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from tenants.accounts.isolation import SHARED, owned, part_of
from tenants.accounts.schema import STRICT, Base


class TenantRow(Base):
    """A tenant; its slug is its identity for ever."""

    __tablename__ = "tenants"
    __isolation__ = SHARED
    __table_args__ = (CheckConstraint("status IN ('active', 'suspended')", name="status"), STRICT)

    slug: Mapped[str] = mapped_column(primary_key=True)
    title: Mapped[str]
    country: Mapped[str]
    status: Mapped[str]
    created_at_us: Mapped[int]


class PrincipalRow(Base):
    """A person or program of a tenant."""

    __tablename__ = "principals"
    __isolation__ = owned("tenant")
    __table_args__ = (UniqueConstraint("tenant", "name"), STRICT)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.slug"))
    name: Mapped[str]
    created_at_us: Mapped[int]


class KeyRow(Base):
    """An API key; the secret itself is never stored."""

    __tablename__ = "api_keys"
    __isolation__ = part_of(PrincipalRow, principal_id="id")

    key_id: Mapped[str] = mapped_column(primary_key=True)
    principal_id: Mapped[str] = mapped_column(ForeignKey("principals.id"), index=True)
    secret_sha256: Mapped[str]
    roles: Mapped[str]
    created_at_us: Mapped[int]
    expires_at_us: Mapped[int | None]  # NULL: the key has no end of its own
    revoked_at_us: Mapped[int | None]  # NULL: the key is live


class DatasetRow(Base):
    """A dataset's card; its documents stay in the tenant's enclosure."""

    __tablename__ = "datasets"
    __isolation__ = owned("tenant")
    __table_args__ = (UniqueConstraint("tenant", "name"), STRICT)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.slug"))
    name: Mapped[str]
    card: Mapped[str]
    license: Mapped[str]
    stored_digest: Mapped[str]
    size_bytes: Mapped[int]
    created_at_us: Mapped[int]


class JobRow(Base):
    """A training job as it stands now; how it came there is in ``job_events``."""

    __tablename__ = "jobs"
    __isolation__ = owned("tenant")
    __table_args__ = (
        UniqueConstraint("tenant", "idempotency_key"),
        Index("ix_jobs_state", "state"),
        CheckConstraint(
            "state IN ('queued', 'placed', 'running', 'sealing', 'succeeded', 'failed', 'cancelled')",
            name="state",
        ),
        CheckConstraint("cancel_requested IN (0, 1)", name="cancel_requested"),
        STRICT,
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.slug"))
    principal_id: Mapped[str] = mapped_column(ForeignKey("principals.id"))
    name: Mapped[str]
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    base_digest: Mapped[str]
    recipe: Mapped[str]
    payload_digest: Mapped[str]
    idempotency_key: Mapped[str | None]  # NULL: the caller gave none
    state: Mapped[str]
    message: Mapped[str]
    attempts: Mapped[int]
    fence: Mapped[int]
    cancel_requested: Mapped[int]
    foreman_id: Mapped[str | None]  # NULL: nobody holds the job
    bundle_digest: Mapped[str | None]  # NULL: nothing was sealed yet
    result: Mapped[str]
    error_code: Mapped[str | None]  # NULL: no attempt failed so far
    error_sentence: Mapped[str | None]  # NULL: as error_code
    created_at_us: Mapped[int]
    updated_at_us: Mapped[int]
    finished_at_us: Mapped[int | None]  # NULL: not finished


class JobAttemptRow(Base):
    """One attempt at a job, held by one foreman under one fence."""

    __tablename__ = "job_attempts"
    __isolation__ = part_of(JobRow, job_id="id")

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    fence: Mapped[int]
    foreman_id: Mapped[str]
    started_at_us: Mapped[int]
    ended_at_us: Mapped[int | None]  # NULL: the attempt runs
    outcome: Mapped[str]


class JobEventRow(Base):
    """One step in the life of a job; append-only."""

    __tablename__ = "job_events"
    __isolation__ = part_of(JobRow, job_id="id")

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at_us: Mapped[int]
    attempt: Mapped[int]
    old_state: Mapped[str]
    new_state: Mapped[str]
    note: Mapped[str]


class JobMetricRow(Base):
    """One point of a curve. A resumed attempt repeats steps and overwrites them with the same values."""

    __tablename__ = "job_metrics"
    __isolation__ = part_of(JobRow, job_id="id")

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float]


class RepeatRow(Base):
    """The first answer to a write that came with an idempotency key; ``answer`` is null for secrets."""

    __tablename__ = "operation_repeats"
    __isolation__ = part_of(PrincipalRow, principal_id="id")
    __table_args__ = (Index("ix_operation_repeats_at_us", "at_us"), STRICT)

    principal_id: Mapped[str] = mapped_column(ForeignKey("principals.id"), primary_key=True)
    idempotency_key: Mapped[str] = mapped_column(primary_key=True)
    operation: Mapped[str]
    payload_digest: Mapped[str]
    answer: Mapped[str | None]
    at_us: Mapped[int]

# SPDX-License-Identifier: Apache-2.0
"""Rows of the register, the metering, the ledger and the audit. Rows never leave the policy floor.

``APPEND_ONLY`` tables can not be updated or deleted from; ``LATCHED`` tables keep their facts and let only
the named state columns move. Both are enforced by triggers that the migration creates on either engine, so
that raw SQL is held to them as well.
"""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from tenants.accounts.schema import STRICT, Base
from tenants.accounts.tables import DatasetRow, JobRow, PrincipalRow, TenantRow

# Keys point from policy to the account rooms; taken from the classes, so that the tables are declared first.
_TENANT = TenantRow.__table__.c.slug
_PRINCIPAL = PrincipalRow.__table__.c.id
_DATASET = DatasetRow.__table__.c.id
_JOB = JobRow.__table__.c.id


class BaseRow(Base):
    """A frozen public model that experts attach to."""

    __tablename__ = "bases"

    base_digest: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    license: Mapped[str]
    status: Mapped[str]
    manifest: Mapped[str]
    added_at_us: Mapped[int]


class ExpertRow(Base):
    """One version of an expert."""

    __tablename__ = "experts"
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

    expert_id: Mapped[str] = mapped_column(ForeignKey("experts.expert_id"), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey(_DATASET), primary_key=True)


class PublicationRow(Base):
    """One epoch."""

    __tablename__ = "publications"
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

    epoch: Mapped[int] = mapped_column(
        ForeignKey("publications.epoch"), primary_key=True, autoincrement=False
    )
    document: Mapped[bytes]


class ListingRow(Base):
    """Price and license of an expert from an epoch on."""

    __tablename__ = "listings"

    expert_id: Mapped[str] = mapped_column(ForeignKey("experts.expert_id"), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    price_micro_per_1k_tokens: Mapped[int]
    license: Mapped[str]
    at_us: Mapped[int]


class LicenseRow(Base):
    """Reviewed facets of a license, from a version on; the highest version counts."""

    __tablename__ = "licenses"

    key: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    facets: Mapped[str]
    at_us: Mapped[int]


class ConsentRow(Base):
    """An owner's word; its history is in ``consent_events``."""

    __tablename__ = "consents"
    __table_args__ = (
        CheckConstraint("effect IN ('permit', 'forbid')", name="effect"),
        CheckConstraint("commercial IN (0, 1)", name="commercial"),
        CheckConstraint("state IN ('given', 'withdrawn')", name="state"),
        STRICT,
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    expert_id: Mapped[str]  # no foreign key here and in rules: * stands for every expert
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey(_DATASET))  # NULL: speaks of experts
    effect: Mapped[str]
    action: Mapped[str]
    purpose: Mapped[str]
    region: Mapped[str]
    recipient: Mapped[str]
    commercial: Mapped[int]
    valid_from_us: Mapped[int]
    valid_until_us: Mapped[int | None]  # NULL: until withdrawn
    state: Mapped[str]
    at_us: Mapped[int]


class ConsentEventRow(Base):
    """What happened to a consent."""

    __tablename__ = "consent_events"
    __table_args__ = (
        UniqueConstraint("consent_id", "event"),
        CheckConstraint("event IN ('given', 'withdrawn')", name="event"),
        STRICT,
    )

    consent_id: Mapped[str] = mapped_column(ForeignKey("consents.id"), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    event: Mapped[str]
    at_us: Mapped[int]
    epoch: Mapped[int]
    principal_id: Mapped[str] = mapped_column(ForeignKey(_PRINCIPAL))


class GrantRow(Base):
    """One consumer's access to an expert."""

    __tablename__ = "grants"
    __table_args__ = (
        CheckConstraint("commercial IN (0, 1)", name="commercial"),
        CheckConstraint("state IN ('given', 'revoked')", name="state"),
        STRICT,
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    expert_id: Mapped[str] = mapped_column(ForeignKey("experts.expert_id"))
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    consumer_tenant: Mapped[str]
    action: Mapped[str]
    purpose: Mapped[str]
    region: Mapped[str]
    commercial: Mapped[int]
    valid_from_us: Mapped[int]
    valid_until_us: Mapped[int | None]  # NULL: until revoked
    state: Mapped[str]
    at_us: Mapped[int]


class RuleRow(Base):
    """What compliance staff wrote."""

    __tablename__ = "rules"
    __table_args__ = (
        CheckConstraint("effect IN ('permit', 'forbid')", name="effect"),
        CheckConstraint("state IN ('live', 'removed')", name="state"),
        STRICT,
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    effect: Mapped[str]
    action: Mapped[str]
    purpose: Mapped[str]
    region: Mapped[str]
    expert_id: Mapped[str]
    consumer_tenant: Mapped[str]
    text: Mapped[str]
    state: Mapped[str]
    at_us: Mapped[int]


class DeploymentRow(Base):
    """A named endpoint as it stands; every earlier form is in the snapshots."""

    __tablename__ = "deployments"
    __table_args__ = (CheckConstraint("state IN ('live', 'removed')", name="state"), STRICT)

    name: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    base_digest: Mapped[str] = mapped_column(ForeignKey("bases.base_digest"))
    document: Mapped[str]
    state: Mapped[str]
    at_us: Mapped[int]


class ChangeRow(Base):
    """A draft of edits on its way to publication."""

    __tablename__ = "changes"
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


class ServerRow(Base):
    """A model host and the highest epoch that it acknowledged."""

    __tablename__ = "servers"

    server_id: Mapped[str] = mapped_column(primary_key=True)
    epoch: Mapped[int]
    first_at_us: Mapped[int]
    last_at_us: Mapped[int]


class AcknowledgementRow(Base):
    """A model host runs what an epoch permits."""

    __tablename__ = "acknowledgements"

    server_id: Mapped[str] = mapped_column(ForeignKey("servers.server_id"), primary_key=True)
    epoch: Mapped[int] = mapped_column(
        ForeignKey("publications.epoch"), primary_key=True, autoincrement=False
    )
    snapshot_digest: Mapped[str]
    compositions: Mapped[str]
    at_us: Mapped[int]


class DecisionRow(Base):
    """One answered question; the same question within an epoch is one row."""

    __tablename__ = "decisions"
    __table_args__ = (UniqueConstraint("epoch", "input_digest", "output_digest"), STRICT)

    id: Mapped[str] = mapped_column(primary_key=True)
    epoch: Mapped[int] = mapped_column(ForeignKey("publications.epoch"))
    deployment: Mapped[str]
    consumer_tenant: Mapped[str]
    question: Mapped[str]
    input_digest: Mapped[str]
    answer: Mapped[str]
    output_digest: Mapped[str]
    engine_version: Mapped[str]
    at_us: Mapped[int]


class DecisionVerdictRow(Base):
    """What a decision says of one expert."""

    __tablename__ = "decision_verdicts"

    decision_id: Mapped[str] = mapped_column(ForeignKey("decisions.id"), primary_key=True)
    expert_id: Mapped[str] = mapped_column(primary_key=True)
    verdict: Mapped[str]
    outcome: Mapped[str]
    code: Mapped[str]


class ReservationRow(Base):
    """A budget hold for one request; its terms never change."""

    __tablename__ = "reservations"
    __table_args__ = (
        CheckConstraint("state IN ('held', 'closed', 'released')", name="state"),
        CheckConstraint("used_tokens >= 0 AND used_tokens <= max_tokens", name="used_tokens"),
        Index("ix_reservations_state", "state", "created_at_us"),
        STRICT,
    )

    request_id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    principal_id: Mapped[str] = mapped_column(ForeignKey(_PRINCIPAL))
    # Empty for requests of before the column; no foreign key, for SQLite adds none to a table that is there.
    key_id: Mapped[str] = mapped_column(server_default="")
    deployment: Mapped[str]
    epoch: Mapped[int] = mapped_column(ForeignKey("publications.epoch"))
    composition_digest: Mapped[str]
    max_tokens: Mapped[int]
    price_ceiling_micro_per_1k: Mapped[int]
    held_micro: Mapped[int]
    used_tokens: Mapped[int]
    remainder: Mapped[int]
    state: Mapped[str]
    created_at_us: Mapped[int]
    closed_at_us: Mapped[int | None]  # NULL: still held


class UsageBatchRow(Base):
    """One upload of a server's journal; sequences of a server have no gaps."""

    __tablename__ = "usage_batches"

    server_id: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    payload_digest: Mapped[str]
    at_us: Mapped[int]


class UsageRecordRow(Base):
    """Metered tokens of one chunk of one request."""

    __tablename__ = "usage_records"
    __table_args__ = (
        Index("ix_usage_records_tenant", "tenant", "at_us"),
        Index("ix_usage_records_request_id", "request_id"),
        ForeignKeyConstraint(
            ["server_id", "sequence"], ["usage_batches.server_id", "usage_batches.sequence"]
        ),
        STRICT,
    )

    server_id: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    request_id: Mapped[str] = mapped_column(ForeignKey("reservations.request_id"))
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    deployment: Mapped[str]
    epoch: Mapped[int] = mapped_column(ForeignKey("publications.epoch"))
    composition_digest: Mapped[str]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    at_us: Mapped[int]
    final: Mapped[int]


class UsageShareRow(Base):
    """How much of a record's tokens an expert computed, in millionths of a token, and what that costs."""

    __tablename__ = "usage_shares"
    __table_args__ = (
        ForeignKeyConstraint(
            ["server_id", "sequence", "n"],
            ["usage_records.server_id", "usage_records.sequence", "usage_records.n"],
        ),
        CheckConstraint("ppm_tokens >= 0", name="ppm_tokens"),
        STRICT,
    )

    server_id: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bundle: Mapped[str] = mapped_column(primary_key=True)  # no foreign key: "public" is no expert
    owner: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    ppm_tokens: Mapped[int]
    price_micro_per_1k_tokens: Mapped[int]
    amount_micro: Mapped[int]
    fee_micro: Mapped[int]


class BudgetRow(Base):
    """What a tenant may spend, has spent and has on hold; the last two are sums, kept for speed."""

    __tablename__ = "budgets"
    __table_args__ = (
        CheckConstraint("limit_micro >= 0 AND spent_micro >= 0 AND held_micro >= 0", name="signs"),
        STRICT,
    )

    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT), primary_key=True)
    limit_micro: Mapped[int]
    spent_micro: Mapped[int]
    held_micro: Mapped[int]


class LedgerAccountRow(Base):
    """An account of the double-entry ledger."""

    __tablename__ = "ledger_accounts"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    kind: Mapped[str]


class LedgerTransactionRow(Base):
    """Closes a group of entries, which must sum to zero; written after them."""

    __tablename__ = "ledger_transactions"
    __table_args__ = (UniqueConstraint("idempotency_key"), STRICT)

    id: Mapped[str] = mapped_column(primary_key=True)
    idempotency_key: Mapped[str]
    kind: Mapped[str]
    at_us: Mapped[int]


class LedgerEntryRow(Base):
    """One amount on one account; positive is owed to the account's tenant."""

    __tablename__ = "ledger_entries"
    __table_args__ = (Index("ix_ledger_entries_account_id", "account_id"), STRICT)

    transaction_id: Mapped[str] = mapped_column(
        # Deferred: entries come first, and the row that closes them is refused unless they sum to zero.
        ForeignKey("ledger_transactions.id", deferrable=True, initially="DEFERRED"),
        primary_key=True,
    )
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    account_id: Mapped[str] = mapped_column(ForeignKey("ledger_accounts.id"))
    amount_micro: Mapped[int]
    memo: Mapped[str]


class SettlementRow(Base):
    """One act of settling."""

    __tablename__ = "settlements"

    id: Mapped[str] = mapped_column(primary_key=True)
    principal_id: Mapped[str] = mapped_column(ForeignKey(_PRINCIPAL))
    at_us: Mapped[int]


class SettledBatchRow(Base):
    """A usage batch belongs to exactly one settlement."""

    __tablename__ = "settled_batches"
    __table_args__ = (
        ForeignKeyConstraint(
            ["server_id", "sequence"], ["usage_batches.server_id", "usage_batches.sequence"]
        ),
        STRICT,
    )

    server_id: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    settlement_id: Mapped[str] = mapped_column(ForeignKey("settlements.id"), index=True)


class StatementRow(Base):
    """What a tenant owes and is owed by one settlement, in canonical bytes."""

    __tablename__ = "statements"
    __table_args__ = (UniqueConstraint("settlement_id", "tenant"), STRICT)

    id: Mapped[str] = mapped_column(primary_key=True)
    settlement_id: Mapped[str] = mapped_column(ForeignKey("settlements.id"))
    tenant: Mapped[str] = mapped_column(ForeignKey(_TENANT))
    document: Mapped[str]
    digest: Mapped[str]
    at_us: Mapped[int]


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


APPEND_ONLY = (
    "job_events",
    "bases",
    "expert_datasets",
    "publications",
    "snapshots",
    "listings",
    "licenses",
    "consent_events",
    "decisions",
    "decision_verdicts",
    "usage_batches",
    "usage_records",
    "usage_shares",
    "ledger_accounts",
    "ledger_transactions",
    "ledger_entries",
    "settlements",
    "settled_batches",
    "statements",
    "audit",
)

LATCHED = {
    "experts": ("state",),
    "consents": ("state",),
    "grants": ("state",),
    "rules": ("state",),
    "changes": ("state", "decided_by", "decided_at_us", "comment", "epoch"),
    "reservations": ("state", "used_tokens", "remainder", "held_micro", "closed_at_us"),
}

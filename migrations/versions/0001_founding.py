# SPDX-License-Identifier: Apache-2.0
"""The founding schema: account rooms, register, metering, ledger, audit, and the guards over them.

Revision ID: 0001
Revises: nothing
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

from migrations.guards import append_only, gapless, latched, refuse

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FLOAT64: TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")

# Table → its primary key and unique keys.
APPEND_ONLY: dict[str, tuple[tuple[str, ...], ...]] = {
    "job_events": (("job_id", "n"),),
    "bases": (("base_digest",),),
    "expert_datasets": (("expert_id", "dataset_id"),),
    "publications": (("epoch",),),
    "snapshots": (("epoch",),),
    "listings": (("expert_id", "epoch"),),
    "licenses": (("key", "version"),),
    "consent_events": (("consent_id", "n"), ("consent_id", "event")),
    "decisions": (("id",), ("epoch", "input_digest", "output_digest")),
    "decision_verdicts": (("decision_id", "expert_id"),),
    "usage_batches": (("server_id", "sequence"),),
    "usage_records": (("server_id", "sequence", "n"),),
    "usage_shares": (("server_id", "sequence", "n", "bundle"),),
    "ledger_accounts": (("id",),),
    "ledger_transactions": (("id",), ("idempotency_key",)),
    "ledger_entries": (("transaction_id", "n"),),
    "settlements": (("id",),),
    "settled_batches": (("server_id", "sequence"),),
    "statements": (("id",), ("settlement_id", "tenant")),
    "audit": (("seq",),),
}

# Table → the columns that never change.
LATCHED: dict[str, tuple[str, ...]] = {
    "experts": (
        "expert_id",
        "tenant",
        "name",
        "version",
        "bundle_digest",
        "base_digest",
        "manifest",
        "job_id",
        "admitted_at_us",
    ),
    "consents": (
        "id",
        "tenant",
        "expert_id",
        "dataset_id",
        "effect",
        "action",
        "purpose",
        "region",
        "recipient",
        "commercial",
        "valid_from_us",
        "valid_until_us",
        "at_us",
    ),
    "grants": (
        "id",
        "expert_id",
        "tenant",
        "consumer_tenant",
        "action",
        "purpose",
        "region",
        "commercial",
        "valid_from_us",
        "valid_until_us",
        "at_us",
    ),
    "rules": ("id", "effect", "action", "purpose", "region", "expert_id", "consumer_tenant", "text", "at_us"),
    "changes": ("id", "title", "tenant", "author_id", "author_name", "items", "digest", "created_at_us"),
    "reservations": (
        "request_id",
        "tenant",
        "principal_id",
        "deployment",
        "epoch",
        "composition_digest",
        "max_tokens",
        "price_ceiling_micro_per_1k",
        "created_at_us",
    ),
}

# Table → the steps back that are refused.
STAYS = {
    "experts": "OLD.state = 'erased' AND NEW.state <> 'erased'",
    "consents": "OLD.state = 'withdrawn' AND NEW.state <> 'withdrawn'",
    "grants": "OLD.state = 'revoked' AND NEW.state <> 'revoked'",
    "rules": "OLD.state = 'removed' AND NEW.state <> 'removed'",
    "changes": "OLD.state <> 'proposed'",
    "reservations": "(OLD.state <> 'held' AND NEW.state = 'held') OR NEW.used_tokens < OLD.used_tokens",
}


def upgrade() -> None:
    """Builds everything."""
    _account_rooms()
    _register()
    _money()
    for table, keys in APPEND_ONLY.items():
        append_only(table, keys)
    for table, fixed in LATCHED.items():
        latched(table, fixed, STAYS[table])
    gapless("publications", "epoch")
    gapless("audit", "seq")
    gapless("usage_batches", "sequence", within="server_id")
    _four_eyes()
    _balance()


def downgrade() -> None:
    """Refuses: the tables are append-only, and going back would drop what must never be lost."""
    raise NotImplementedError("the founding schema has nothing before it")


def _four_eyes() -> None:
    refuse(
        "publications",
        "four_eyes",
        "INSERT",
        "NEW.change_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM changes WHERE id = NEW.change_id "
        "AND state = 'approved' AND decided_by <> author_id AND epoch = NEW.epoch)",
        "a change is published only when somebody else approved it",
    )
    refuse(
        "changes",
        "born",
        "INSERT",
        "NEW.state <> 'proposed'",
        "a change begins as a proposal",
    )


def _balance() -> None:
    """Entries come first; the row that closes them is refused unless they sum to zero, and ends the group.

    The foreign key from entries to their transaction is deferred, so no commit leaves an unclosed group.
    """
    total = "(SELECT COALESCE(SUM(amount_micro), 1) FROM ledger_entries WHERE transaction_id = NEW.id)"
    refuse("ledger_transactions", "balance", "INSERT", f"{total} <> 0", "entries do not sum to zero")
    closed = "EXISTS (SELECT 1 FROM ledger_transactions WHERE id = NEW.transaction_id)"
    refuse("ledger_entries", "closed", "INSERT", closed, "the transaction is closed")
    if op.get_bind().dialect.name == "postgresql":
        # Two units of work could add entries to the same transaction without seeing each other.
        op.execute(
            "CREATE FUNCTION guard_ledger_entries_sum() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF (SELECT SUM(amount_micro) FROM ledger_entries WHERE transaction_id = NEW.transaction_id) "
            "<> 0 THEN RAISE EXCEPTION 'entries do not sum to zero' USING ERRCODE = "
            "'integrity_constraint_violation'; END IF; RETURN NULL; END $$"
        )
        op.execute(
            "CREATE CONSTRAINT TRIGGER guard_ledger_entries_sum AFTER INSERT ON ledger_entries "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION guard_ledger_entries_sum()"
        )


def _account_rooms() -> None:
    """Tenants, principals, keys, datasets, jobs."""
    op.create_table(
        "tenants",
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("country", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at_us", INT64, nullable=False),
        sa.CheckConstraint("status IN ('active', 'suspended')", name="ck_tenants_status"),
        sa.PrimaryKeyConstraint("slug", name="pk_tenants"),
        sqlite_strict=True,
    )
    op.create_table(
        "principals",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at_us", INT64, nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_principals_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_principals"),
        sa.UniqueConstraint("tenant", "name", name="uq_principals_tenant_name"),
        sqlite_strict=True,
    )
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("principal_id", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.Text(), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("created_at_us", INT64, nullable=False),
        sa.Column("expires_at_us", INT64, nullable=True),
        sa.Column("revoked_at_us", INT64, nullable=True),
        sa.ForeignKeyConstraint(["principal_id"], ["principals.id"], name="fk_api_keys_principal_id"),
        sa.PrimaryKeyConstraint("key_id", name="pk_api_keys"),
        sqlite_strict=True,
    )
    op.create_index("ix_api_keys_principal_id", "api_keys", ["principal_id"], unique=False)
    op.create_table(
        "datasets",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("card", sa.Text(), nullable=False),
        sa.Column("license", sa.Text(), nullable=False),
        sa.Column("stored_digest", sa.Text(), nullable=False),
        sa.Column("size_bytes", INT64, nullable=False),
        sa.Column("created_at_us", INT64, nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_datasets_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_datasets"),
        sa.UniqueConstraint("tenant", "name", name="uq_datasets_tenant_name"),
        sqlite_strict=True,
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("principal_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("base_digest", sa.Text(), nullable=False),
        sa.Column("recipe", sa.Text(), nullable=False),
        sa.Column("payload_digest", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("attempts", INT64, nullable=False),
        sa.Column("fence", INT64, nullable=False),
        sa.Column("cancel_requested", INT64, nullable=False),
        sa.Column("foreman_id", sa.Text(), nullable=True),
        sa.Column("bundle_digest", sa.Text(), nullable=True),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_sentence", sa.Text(), nullable=True),
        sa.Column("created_at_us", INT64, nullable=False),
        sa.Column("updated_at_us", INT64, nullable=False),
        sa.Column("finished_at_us", INT64, nullable=True),
        sa.CheckConstraint(
            "state IN ('queued', 'placed', 'running', 'sealing', 'succeeded', 'failed', 'cancelled')",
            name="ck_jobs_state",
        ),
        sa.CheckConstraint("cancel_requested IN (0, 1)", name="ck_jobs_cancel_requested"),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name="fk_jobs_dataset_id"),
        sa.ForeignKeyConstraint(["principal_id"], ["principals.id"], name="fk_jobs_principal_id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_jobs_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("tenant", "idempotency_key", name="uq_jobs_tenant_idempotency_key"),
        sqlite_strict=True,
    )
    op.create_index("ix_jobs_state", "jobs", ["state"], unique=False)
    op.create_table(
        "job_attempts",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("attempt", INT64, autoincrement=False, nullable=False),
        sa.Column("fence", INT64, nullable=False),
        sa.Column("foreman_id", sa.Text(), nullable=False),
        sa.Column("started_at_us", INT64, nullable=False),
        sa.Column("ended_at_us", INT64, nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_attempts_job_id"),
        sa.PrimaryKeyConstraint("job_id", "attempt", name="pk_job_attempts"),
        sqlite_strict=True,
    )
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("n", INT64, autoincrement=False, nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.Column("attempt", INT64, nullable=False),
        sa.Column("old_state", sa.Text(), nullable=False),
        sa.Column("new_state", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_events_job_id"),
        sa.PrimaryKeyConstraint("job_id", "n", name="pk_job_events"),
        sqlite_strict=True,
    )
    op.create_table(
        "job_metrics",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("step", INT64, autoincrement=False, nullable=False),
        sa.Column("value", FLOAT64, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_metrics_job_id"),
        sa.PrimaryKeyConstraint("job_id", "name", "step", name="pk_job_metrics"),
        sqlite_strict=True,
    )


def _register() -> None:
    """Assets, facts, changes, epochs, decisions, audit."""
    op.create_table(
        "bases",
        sa.Column("base_digest", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("license", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("added_at_us", INT64, nullable=False),
        sa.PrimaryKeyConstraint("base_digest", name="pk_bases"),
        sqlite_strict=True,
    )
    op.create_table(
        "experts",
        sa.Column("expert_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", INT64, nullable=False),
        sa.Column("bundle_digest", sa.Text(), nullable=False),
        sa.Column("base_digest", sa.Text(), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("admitted_at_us", INT64, nullable=False),
        sa.CheckConstraint("state IN ('sealed', 'listed', 'suspended', 'erased')", name="ck_experts_state"),
        sa.ForeignKeyConstraint(["base_digest"], ["bases.base_digest"], name="fk_experts_base_digest"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_experts_job_id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_experts_tenant"),
        sa.PrimaryKeyConstraint("expert_id", name="pk_experts"),
        sa.UniqueConstraint("bundle_digest", name="uq_experts_bundle_digest"),
        sa.UniqueConstraint("tenant", "name", "version", name="uq_experts_tenant_name_version"),
        sqlite_strict=True,
    )
    op.create_table(
        "expert_datasets",
        sa.Column("expert_id", sa.Text(), nullable=False),
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name="fk_expert_datasets_dataset_id"),
        sa.ForeignKeyConstraint(["expert_id"], ["experts.expert_id"], name="fk_expert_datasets_expert_id"),
        sa.PrimaryKeyConstraint("expert_id", "dataset_id", name="pk_expert_datasets"),
        sqlite_strict=True,
    )
    op.create_table(
        "changes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("author_id", sa.Text(), nullable=False),
        sa.Column("author_name", sa.Text(), nullable=False),
        sa.Column("items", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at_us", INT64, nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("decided_at_us", INT64, nullable=True),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("epoch", INT64, nullable=True),
        sa.CheckConstraint(
            "state <> 'approved' OR (decided_by IS NOT NULL AND decided_by <> author_id)",
            name="ck_changes_four_eyes",
        ),
        sa.CheckConstraint("state IN ('proposed', 'approved', 'rejected')", name="ck_changes_state"),
        sa.ForeignKeyConstraint(["author_id"], ["principals.id"], name="fk_changes_author_id"),
        sa.ForeignKeyConstraint(["decided_by"], ["principals.id"], name="fk_changes_decided_by"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_changes_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_changes"),
        sqlite_strict=True,
    )
    op.create_table(
        "publications",
        sa.Column("epoch", INT64, autoincrement=False, nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.Column("snapshot_digest", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("principal_id", sa.Text(), nullable=True),
        sa.Column("change_id", sa.Text(), nullable=True),
        sa.CheckConstraint("epoch >= 1", name="ck_publications_epoch"),
        sa.ForeignKeyConstraint(["change_id"], ["changes.id"], name="fk_publications_change_id"),
        sa.ForeignKeyConstraint(["principal_id"], ["principals.id"], name="fk_publications_principal_id"),
        sa.PrimaryKeyConstraint("epoch", name="pk_publications"),
        sqlite_strict=True,
    )
    op.create_table(
        "snapshots",
        sa.Column("epoch", INT64, autoincrement=False, nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["epoch"], ["publications.epoch"], name="fk_snapshots_epoch"),
        sa.PrimaryKeyConstraint("epoch", name="pk_snapshots"),
        sqlite_strict=True,
    )
    op.create_table(
        "listings",
        sa.Column("expert_id", sa.Text(), nullable=False),
        sa.Column("epoch", INT64, autoincrement=False, nullable=False),
        sa.Column("price_micro_per_1k_tokens", INT64, nullable=False),
        sa.Column("license", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.ForeignKeyConstraint(["expert_id"], ["experts.expert_id"], name="fk_listings_expert_id"),
        sa.PrimaryKeyConstraint("expert_id", "epoch", name="pk_listings"),
        sqlite_strict=True,
    )
    op.create_table(
        "licenses",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("version", INT64, autoincrement=False, nullable=False),
        sa.Column("facets", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.PrimaryKeyConstraint("key", "version", name="pk_licenses"),
        sqlite_strict=True,
    )
    op.create_table(
        "consents",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("expert_id", sa.Text(), nullable=False),
        sa.Column("dataset_id", sa.Text(), nullable=True),
        sa.Column("effect", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("commercial", INT64, nullable=False),
        sa.Column("valid_from_us", INT64, nullable=False),
        sa.Column("valid_until_us", INT64, nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.CheckConstraint("effect IN ('permit', 'forbid')", name="ck_consents_effect"),
        sa.CheckConstraint("state IN ('given', 'withdrawn')", name="ck_consents_state"),
        sa.CheckConstraint("commercial IN (0, 1)", name="ck_consents_commercial"),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name="fk_consents_dataset_id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_consents_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_consents"),
        sqlite_strict=True,
    )
    op.create_table(
        "consent_events",
        sa.Column("consent_id", sa.Text(), nullable=False),
        sa.Column("n", INT64, autoincrement=False, nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.Column("epoch", INT64, nullable=False),
        sa.Column("principal_id", sa.Text(), nullable=False),
        sa.CheckConstraint("event IN ('given', 'withdrawn')", name="ck_consent_events_event"),
        sa.ForeignKeyConstraint(["consent_id"], ["consents.id"], name="fk_consent_events_consent_id"),
        sa.ForeignKeyConstraint(["principal_id"], ["principals.id"], name="fk_consent_events_principal_id"),
        sa.PrimaryKeyConstraint("consent_id", "n", name="pk_consent_events"),
        sa.UniqueConstraint("consent_id", "event", name="uq_consent_events_consent_id_event"),
        sqlite_strict=True,
    )
    op.create_table(
        "grants",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("expert_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("consumer_tenant", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("commercial", INT64, nullable=False),
        sa.Column("valid_from_us", INT64, nullable=False),
        sa.Column("valid_until_us", INT64, nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.CheckConstraint("state IN ('given', 'revoked')", name="ck_grants_state"),
        sa.CheckConstraint("commercial IN (0, 1)", name="ck_grants_commercial"),
        sa.ForeignKeyConstraint(["expert_id"], ["experts.expert_id"], name="fk_grants_expert_id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_grants_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_grants"),
        sqlite_strict=True,
    )
    op.create_table(
        "rules",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("effect", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("expert_id", sa.Text(), nullable=False),
        sa.Column("consumer_tenant", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.CheckConstraint("effect IN ('permit', 'forbid')", name="ck_rules_effect"),
        sa.CheckConstraint("state IN ('live', 'removed')", name="ck_rules_state"),
        sa.PrimaryKeyConstraint("id", name="pk_rules"),
        sqlite_strict=True,
    )
    op.create_table(
        "deployments",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("base_digest", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.CheckConstraint("state IN ('live', 'removed')", name="ck_deployments_state"),
        sa.ForeignKeyConstraint(["base_digest"], ["bases.base_digest"], name="fk_deployments_base_digest"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_deployments_tenant"),
        sa.PrimaryKeyConstraint("name", name="pk_deployments"),
        sqlite_strict=True,
    )
    op.create_table(
        "servers",
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("epoch", INT64, nullable=False),
        sa.Column("first_at_us", INT64, nullable=False),
        sa.Column("last_at_us", INT64, nullable=False),
        sa.PrimaryKeyConstraint("server_id", name="pk_servers"),
        sqlite_strict=True,
    )
    op.create_table(
        "acknowledgements",
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("epoch", INT64, autoincrement=False, nullable=False),
        sa.Column("snapshot_digest", sa.Text(), nullable=False),
        sa.Column("compositions", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.ForeignKeyConstraint(["epoch"], ["publications.epoch"], name="fk_acknowledgements_epoch"),
        sa.ForeignKeyConstraint(["server_id"], ["servers.server_id"], name="fk_acknowledgements_server_id"),
        sa.PrimaryKeyConstraint("server_id", "epoch", name="pk_acknowledgements"),
        sqlite_strict=True,
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("epoch", INT64, nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("consumer_tenant", sa.Text(), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("input_digest", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("output_digest", sa.Text(), nullable=False),
        sa.Column("engine_version", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.ForeignKeyConstraint(["epoch"], ["publications.epoch"], name="fk_decisions_epoch"),
        sa.PrimaryKeyConstraint("id", name="pk_decisions"),
        sa.UniqueConstraint(
            "epoch", "input_digest", "output_digest", name="uq_decisions_epoch_input_digest_output_digest"
        ),
        sqlite_strict=True,
    )
    op.create_table(
        "decision_verdicts",
        sa.Column("decision_id", sa.Text(), nullable=False),
        sa.Column("expert_id", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["decision_id"], ["decisions.id"], name="fk_decision_verdicts_decision_id"),
        sa.PrimaryKeyConstraint("decision_id", "expert_id", name="pk_decision_verdicts"),
        sqlite_strict=True,
    )
    op.create_table(
        "audit",
        sa.Column("seq", INT64, autoincrement=False, nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("prev_hash", sa.Text(), nullable=False),
        sa.Column("leaf_hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
        sqlite_strict=True,
    )


def _money() -> None:
    """Metering, budgets, ledger, statements."""
    op.create_table(
        "reservations",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("principal_id", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("epoch", INT64, nullable=False),
        sa.Column("composition_digest", sa.Text(), nullable=False),
        sa.Column("max_tokens", INT64, nullable=False),
        sa.Column("price_ceiling_micro_per_1k", INT64, nullable=False),
        sa.Column("held_micro", INT64, nullable=False),
        sa.Column("used_tokens", INT64, nullable=False),
        sa.Column("remainder", INT64, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at_us", INT64, nullable=False),
        sa.Column("closed_at_us", INT64, nullable=True),
        sa.CheckConstraint("state IN ('held', 'closed', 'released')", name="ck_reservations_state"),
        sa.CheckConstraint(
            "used_tokens >= 0 AND used_tokens <= max_tokens", name="ck_reservations_used_tokens"
        ),
        sa.ForeignKeyConstraint(["epoch"], ["publications.epoch"], name="fk_reservations_epoch"),
        sa.ForeignKeyConstraint(["principal_id"], ["principals.id"], name="fk_reservations_principal_id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_reservations_tenant"),
        sa.PrimaryKeyConstraint("request_id", name="pk_reservations"),
        sqlite_strict=True,
    )
    op.create_index("ix_reservations_state", "reservations", ["state", "created_at_us"], unique=False)
    op.create_table(
        "usage_batches",
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("sequence", INT64, autoincrement=False, nullable=False),
        sa.Column("payload_digest", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.PrimaryKeyConstraint("server_id", "sequence", name="pk_usage_batches"),
        sqlite_strict=True,
    )
    op.create_table(
        "usage_records",
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("sequence", INT64, autoincrement=False, nullable=False),
        sa.Column("n", INT64, autoincrement=False, nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("epoch", INT64, nullable=False),
        sa.Column("composition_digest", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", INT64, nullable=False),
        sa.Column("completion_tokens", INT64, nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.Column("final", INT64, nullable=False),
        sa.ForeignKeyConstraint(["epoch"], ["publications.epoch"], name="fk_usage_records_epoch"),
        sa.ForeignKeyConstraint(
            ["request_id"], ["reservations.request_id"], name="fk_usage_records_request_id"
        ),
        sa.ForeignKeyConstraint(
            ["server_id", "sequence"],
            ["usage_batches.server_id", "usage_batches.sequence"],
            name="fk_usage_records_server_id_sequence",
        ),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_usage_records_tenant"),
        sa.PrimaryKeyConstraint("server_id", "sequence", "n", name="pk_usage_records"),
        sqlite_strict=True,
    )
    op.create_index("ix_usage_records_request_id", "usage_records", ["request_id"], unique=False)
    op.create_index("ix_usage_records_tenant", "usage_records", ["tenant", "at_us"], unique=False)
    op.create_table(
        "usage_shares",
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("sequence", INT64, autoincrement=False, nullable=False),
        sa.Column("n", INT64, autoincrement=False, nullable=False),
        sa.Column("bundle", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("ppm_tokens", INT64, nullable=False),
        sa.Column("price_micro_per_1k_tokens", INT64, nullable=False),
        sa.Column("amount_micro", INT64, nullable=False),
        sa.Column("fee_micro", INT64, nullable=False),
        sa.CheckConstraint("ppm_tokens >= 0", name="ck_usage_shares_ppm_tokens"),
        sa.ForeignKeyConstraint(["owner"], ["tenants.slug"], name="fk_usage_shares_owner"),
        sa.ForeignKeyConstraint(
            ["server_id", "sequence", "n"],
            ["usage_records.server_id", "usage_records.sequence", "usage_records.n"],
            name="fk_usage_shares_server_id_sequence_n",
        ),
        sa.PrimaryKeyConstraint("server_id", "sequence", "n", "bundle", name="pk_usage_shares"),
        sqlite_strict=True,
    )
    # ### end Alembic commands ###
    op.create_table(
        "budgets",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("limit_micro", INT64, nullable=False),
        sa.Column("spent_micro", INT64, nullable=False),
        sa.Column("held_micro", INT64, nullable=False),
        sa.CheckConstraint(
            "limit_micro >= 0 AND spent_micro >= 0 AND held_micro >= 0", name="ck_budgets_signs"
        ),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_budgets_tenant"),
        sa.PrimaryKeyConstraint("tenant", name="pk_budgets"),
        sqlite_strict=True,
    )
    op.create_table(
        "ledger_accounts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_ledger_accounts_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_ledger_accounts"),
        sqlite_strict=True,
    )
    op.create_table(
        "ledger_transactions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ledger_transactions"),
        sa.UniqueConstraint("idempotency_key", name="uq_ledger_transactions_idempotency_key"),
        sqlite_strict=True,
    )
    op.create_table(
        "ledger_entries",
        sa.Column("transaction_id", sa.Text(), nullable=False),
        sa.Column("n", INT64, autoincrement=False, nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("amount_micro", INT64, nullable=False),
        sa.Column("memo", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["ledger_accounts.id"], name="fk_ledger_entries_account_id"),
        sa.ForeignKeyConstraint(
            ["transaction_id"],
            ["ledger_transactions.id"],
            name="fk_ledger_entries_transaction_id",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("transaction_id", "n", name="pk_ledger_entries"),
        sqlite_strict=True,
    )
    op.create_index("ix_ledger_entries_account_id", "ledger_entries", ["account_id"], unique=False)
    op.create_table(
        "settlements",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("principal_id", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.ForeignKeyConstraint(["principal_id"], ["principals.id"], name="fk_settlements_principal_id"),
        sa.PrimaryKeyConstraint("id", name="pk_settlements"),
        sqlite_strict=True,
    )
    op.create_table(
        "settled_batches",
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("sequence", INT64, autoincrement=False, nullable=False),
        sa.Column("settlement_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["server_id", "sequence"],
            ["usage_batches.server_id", "usage_batches.sequence"],
            name="fk_settled_batches_server_id_sequence",
        ),
        sa.ForeignKeyConstraint(
            ["settlement_id"], ["settlements.id"], name="fk_settled_batches_settlement_id"
        ),
        sa.PrimaryKeyConstraint("server_id", "sequence", name="pk_settled_batches"),
        sqlite_strict=True,
    )
    op.create_index("ix_settled_batches_settlement_id", "settled_batches", ["settlement_id"], unique=False)
    op.create_table(
        "statements",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("settlement_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.ForeignKeyConstraint(["settlement_id"], ["settlements.id"], name="fk_statements_settlement_id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_statements_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_statements"),
        sa.UniqueConstraint("settlement_id", "tenant", name="uq_statements_settlement_id_tenant"),
        sqlite_strict=True,
    )

# SPDX-License-Identifier: Apache-2.0
"""Drafts, scheduled publication, emergency stops, measured values and impact reports.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

from migrations.guards import append_only, latched, refuse

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# Table → primary key and unique keys.
APPEND_ONLY: dict[str, tuple[tuple[str, ...], ...]] = {
    "change_approvals": (("change_id",),),
    "expert_evaluations": (("id",),),
    "impact_reports": (("digest",),),
}

# Table → columns that never change; those of ``changes`` are further ones.
LATCHED: dict[str, tuple[str, ...]] = {
    "changes": ("effective_at_us", "rolls_back"),
    "change_drafts": ("id", "tenant", "author_id", "author_name", "revises", "created_at_us"),
    "stops": (
        "id",
        "kind",
        "subject",
        "tenant",
        "fact_id",
        "reason",
        "principal_id",
        "principal_name",
        "at_us",
        "epoch",
        "second_signature_due_at_us",
    ),
}

# Table → the steps back that are refused.
STAYS = {
    "change_drafts": "OLD.state <> 'draft' OR NEW.version < OLD.version OR "
    "(NEW.version = OLD.version AND NEW.digest <> OLD.digest)",
    "stops": "OLD.signed_by IS NOT NULL",
}


def upgrade() -> None:
    """Adds columns and tables; releases before it neither read nor write them."""
    op.add_column("changes", sa.Column("stage", sa.Text(), nullable=False, server_default=""))
    op.add_column("changes", sa.Column("effective_at_us", INT64, nullable=True))
    op.add_column("changes", sa.Column("rolls_back", sa.Text(), nullable=True))
    _drafts()
    _stops()
    _reports()
    for table, keys in APPEND_ONLY.items():
        append_only(table, keys)
    for table, stays in STAYS.items():
        latched(table, LATCHED[table], stays)
    changed = " OR ".join(f"OLD.{name} IS DISTINCT FROM NEW.{name}" for name in LATCHED["changes"])
    refuse("changes", "terms", "UPDATE", changed, "the facts of changes never change")
    refuse(
        "publications",
        "never_early",
        "INSERT",
        "EXISTS (SELECT 1 FROM changes WHERE id = NEW.change_id AND effective_at_us > NEW.at_us)",
        "a change is never published before its time",
    )
    refuse(
        "change_approvals",
        "four_eyes",
        "INSERT",
        "NOT EXISTS (SELECT 1 FROM changes WHERE id = NEW.change_id AND state = 'proposed' "
        "AND digest = NEW.digest AND author_id <> NEW.principal_id)",
        "somebody else approves a change, by its digest",
    )


def downgrade() -> None:
    """Refuses: who approved and who stopped what would be lost."""
    raise NotImplementedError("approvals and stops are never forgotten")


def _drafts() -> None:
    op.create_table(
        "change_drafts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("author_id", sa.Text(), nullable=False),
        sa.Column("author_name", sa.Text(), nullable=False),
        sa.Column("revises", sa.Text(), nullable=True),
        sa.Column("created_at_us", INT64, nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("items", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("effective_at_us", INT64, nullable=True),
        sa.Column("version", INT64, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("edited_at_us", INT64, nullable=False),
        sa.CheckConstraint("state IN ('draft', 'submitted', 'withdrawn')", name="ck_change_drafts_state"),
        sa.CheckConstraint("version >= 1", name="ck_change_drafts_version"),
        sa.ForeignKeyConstraint(["author_id"], ["principals.id"], name="fk_change_drafts_author_id"),
        sa.ForeignKeyConstraint(["revises"], ["changes.id"], name="fk_change_drafts_revises"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_change_drafts_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_change_drafts"),
        sqlite_strict=True,
    )
    op.create_table(
        "change_approvals",
        sa.Column("change_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("principal_id", sa.Text(), nullable=False),
        sa.Column("principal_name", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.ForeignKeyConstraint(["change_id"], ["changes.id"], name="fk_change_approvals_change_id"),
        sa.ForeignKeyConstraint(["principal_id"], ["principals.id"], name="fk_change_approvals_principal_id"),
        sa.PrimaryKeyConstraint("change_id", name="pk_change_approvals"),
        sqlite_strict=True,
    )


def _stops() -> None:
    op.create_table(
        "stops",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=True),
        sa.Column("fact_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("principal_id", sa.Text(), nullable=False),
        sa.Column("principal_name", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.Column("epoch", INT64, nullable=False),
        sa.Column("second_signature_due_at_us", INT64, nullable=False),
        sa.Column("signed_by", sa.Text(), nullable=True),
        sa.Column("signed_at_us", INT64, nullable=True),
        sa.CheckConstraint(
            "kind IN ('expert', 'tenant', 'deployment', 'license', 'purpose')", name="ck_stops_kind"
        ),
        sa.CheckConstraint("signed_by IS NULL OR signed_by <> principal_id", name="ck_stops_four_eyes"),
        sa.CheckConstraint("(signed_by IS NULL) = (signed_at_us IS NULL)", name="ck_stops_signature"),
        sa.ForeignKeyConstraint(["epoch"], ["publications.epoch"], name="fk_stops_epoch"),
        sa.ForeignKeyConstraint(["principal_id"], ["principals.id"], name="fk_stops_principal_id"),
        sa.ForeignKeyConstraint(["signed_by"], ["principals.id"], name="fk_stops_signed_by"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_stops_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_stops"),
        sqlite_strict=True,
    )


def _reports() -> None:
    op.create_table(
        "expert_evaluations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("expert_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("value_micro", INT64, nullable=False),
        sa.Column("evidence_digest", sa.Text(), nullable=False),
        sa.Column("principal_id", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.ForeignKeyConstraint(["expert_id"], ["experts.expert_id"], name="fk_expert_evaluations_expert_id"),
        sa.ForeignKeyConstraint(
            ["principal_id"], ["principals.id"], name="fk_expert_evaluations_principal_id"
        ),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_expert_evaluations_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_expert_evaluations"),
        sqlite_strict=True,
    )
    op.create_index("ix_expert_evaluations_expert_id", "expert_evaluations", ["expert_id"])
    op.create_table(
        "impact_reports",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("change_id", sa.Text(), nullable=True),
        sa.Column("change_digest", sa.Text(), nullable=False),
        sa.Column("epoch", INT64, nullable=True),
        sa.Column("epoch_base", INT64, nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.CheckConstraint("(change_id IS NULL) <> (epoch IS NULL)", name="ck_impact_reports_subject"),
        sa.ForeignKeyConstraint(["change_id"], ["changes.id"], name="fk_impact_reports_change_id"),
        sa.ForeignKeyConstraint(["epoch"], ["publications.epoch"], name="fk_impact_reports_epoch"),
        sa.PrimaryKeyConstraint("digest", name="pk_impact_reports"),
        sqlite_strict=True,
    )
    op.create_index("ix_impact_reports_change_id", "impact_reports", ["change_id"])
    op.create_index("ix_impact_reports_epoch", "impact_reports", ["epoch"])

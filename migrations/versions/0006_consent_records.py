# SPDX-License-Identifier: Apache-2.0
"""Consent records with their notices, the vault of what names a person, legal holds, erasure, notifications.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

from migrations.guards import append_only, gapless, latched, refuse

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# Table → primary key and unique keys.
APPEND_ONLY: dict[str, tuple[tuple[str, ...], ...]] = {
    "notices": (("tenant", "digest"),),
    "consent_records": (("record_id",),),
    "consent_record_events": (("record_id", "n"),),
    "legal_holds": (("hold_id", "n"),),
    "erasure_events": (("erasure_id", "n"),),
}

# Table → columns that never change.
LATCHED: dict[str, tuple[str, ...]] = {
    "erasures": (
        "id",
        "tenant",
        "subject_kind",
        "subject_id",
        "reason",
        "requested_by",
        "requested_at_us",
    ),
    "notifications": ("id", "tenant", "kind", "object", "body", "at_us"),
}

# Table → the steps back that are refused.
STAYS = {
    "erasures": "OLD.state IN ('completed', 'rejected') OR "
    "(OLD.state = 'approved' AND (NEW.state NOT IN ('approved', 'completed') "
    "OR OLD.decided_by IS DISTINCT FROM NEW.decided_by))",
    "notifications": "OLD.acknowledged_by IS NOT NULL",
}


def upgrade() -> None:
    """Adds the tables; releases before it neither read nor write them."""
    _consents()
    _erasures()
    for table, keys in APPEND_ONLY.items():
        append_only(table, keys)
    for table, fixed in LATCHED.items():
        latched(table, fixed, STAYS[table])
    gapless("consent_record_events", "n", within="record_id")
    gapless("legal_holds", "n", within="hold_id")
    gapless("erasure_events", "n", within="erasure_id")
    # The vault forgets, and does nothing else: what a reference stands for is never exchanged.
    refuse("personal_vault", "update", "UPDATE", "1 = 1", "the vault keeps or forgets, it never changes")


def downgrade() -> None:
    """Refuses: what people consented to, and what was erased, would be lost."""
    raise NotImplementedError("consent records are never forgotten")


def _consents() -> None:
    op.create_table(
        "notices",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_notices_tenant"),
        sa.PrimaryKeyConstraint("tenant", "digest", name="pk_notices"),
        sqlite_strict=True,
    )
    op.create_table(
        "consent_records",
        sa.Column("record_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("notice_digest", sa.Text(), nullable=True),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_consent_records_tenant"),
        sa.ForeignKeyConstraint(
            ["tenant", "notice_digest"],
            ["notices.tenant", "notices.digest"],
            name="fk_consent_records_tenant_notice_digest",
        ),
        sa.PrimaryKeyConstraint("record_id", name="pk_consent_records"),
        sqlite_strict=True,
    )
    op.create_table(
        "consent_record_events",
        sa.Column("record_id", sa.Text(), nullable=False),
        sa.Column("n", INT64, autoincrement=False, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.Column("principal_id", sa.Text(), nullable=True),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("notice_digest", sa.Text(), nullable=True),
        sa.Column("evidence_ref", sa.Text(), nullable=True),
        sa.Column("consent_id", sa.Text(), nullable=True),
        sa.Column("epoch", INT64, nullable=True),
        sa.CheckConstraint(
            "event IN ('requested', 'refused', 'given', 'renewed', 'withdrawn', 'revoked', 'expired', "
            "'invalidated')",
            name="ck_consent_record_events_event",
        ),
        sa.ForeignKeyConstraint(["consent_id"], ["consents.id"], name="fk_consent_record_events_consent_id"),
        sa.ForeignKeyConstraint(
            ["principal_id"], ["principals.id"], name="fk_consent_record_events_principal_id"
        ),
        sa.ForeignKeyConstraint(
            ["record_id"], ["consent_records.record_id"], name="fk_consent_record_events_record_id"
        ),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_consent_record_events_tenant"),
        sa.ForeignKeyConstraint(
            ["tenant", "notice_digest"],
            ["notices.tenant", "notices.digest"],
            name="fk_consent_record_events_tenant_notice_digest",
        ),
        sa.PrimaryKeyConstraint("record_id", "n", name="pk_consent_record_events"),
        sqlite_strict=True,
    )
    op.create_index("ix_consent_record_events_consent_id", "consent_record_events", ["consent_id"])
    op.create_table(
        "personal_vault",
        sa.Column("ref", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("salt", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_personal_vault_tenant"),
        sa.PrimaryKeyConstraint("ref", name="pk_personal_vault"),
        sqlite_strict=True,
    )
    op.create_index("ix_personal_vault_tenant", "personal_vault", ["tenant"])


def _erasures() -> None:
    op.create_table(
        "legal_holds",
        sa.Column("hold_id", sa.Text(), nullable=False),
        sa.Column("n", INT64, autoincrement=False, nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("subject_kind", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("principal_id", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.CheckConstraint("event IN ('set', 'lifted')", name="ck_legal_holds_event"),
        sa.CheckConstraint(
            "subject_kind IN ('expert', 'dataset', 'tenant')", name="ck_legal_holds_subject_kind"
        ),
        sa.ForeignKeyConstraint(["principal_id"], ["principals.id"], name="fk_legal_holds_principal_id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_legal_holds_tenant"),
        sa.PrimaryKeyConstraint("hold_id", "n", name="pk_legal_holds"),
        sqlite_strict=True,
    )
    op.create_index("ix_legal_holds_subject_id", "legal_holds", ["subject_id"])
    op.create_table(
        "erasures",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("subject_kind", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("requested_at_us", INT64, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("decided_at_us", INT64, nullable=True),
        sa.Column("epoch", INT64, nullable=True),
        sa.Column("completed_at_us", INT64, nullable=True),
        sa.Column("record", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state = 'requested' OR state = 'rejected' OR "
            "(decided_by IS NOT NULL AND decided_by <> requested_by AND epoch IS NOT NULL)",
            name="ck_erasures_four_eyes",
        ),
        sa.CheckConstraint("(state = 'completed') = (record IS NOT NULL)", name="ck_erasures_record"),
        sa.CheckConstraint(
            "state IN ('requested', 'approved', 'completed', 'rejected')", name="ck_erasures_state"
        ),
        sa.CheckConstraint(
            "subject_kind IN ('expert', 'dataset', 'personal_data')", name="ck_erasures_subject_kind"
        ),
        sa.ForeignKeyConstraint(["decided_by"], ["principals.id"], name="fk_erasures_decided_by"),
        sa.ForeignKeyConstraint(["requested_by"], ["principals.id"], name="fk_erasures_requested_by"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_erasures_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_erasures"),
        sqlite_strict=True,
    )
    op.create_index("ix_erasures_subject_id", "erasures", ["subject_id"])
    op.create_table(
        "erasure_events",
        sa.Column("erasure_id", sa.Text(), nullable=False),
        sa.Column("n", INT64, autoincrement=False, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.CheckConstraint(
            "outcome IN ('planned', 'erased', 'absent', 'kept', 'named')", name="ck_erasure_events_outcome"
        ),
        sa.ForeignKeyConstraint(["erasure_id"], ["erasures.id"], name="fk_erasure_events_erasure_id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_erasure_events_tenant"),
        sa.PrimaryKeyConstraint("erasure_id", "n", name="pk_erasure_events"),
        sqlite_strict=True,
    )
    op.create_table(
        "notifications",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.Column("acknowledged_by", sa.Text(), nullable=True),
        sa.Column("acknowledged_at_us", INT64, nullable=True),
        sa.CheckConstraint(
            "(acknowledged_by IS NULL) = (acknowledged_at_us IS NULL)", name="ck_notifications_acknowledged"
        ),
        sa.ForeignKeyConstraint(
            ["acknowledged_by"], ["principals.id"], name="fk_notifications_acknowledged_by"
        ),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.slug"], name="fk_notifications_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_notifications"),
        sqlite_strict=True,
    )
    op.create_index("ix_notifications_object", "notifications", ["object"])
    op.create_index("ix_notifications_tenant", "notifications", ["tenant"])

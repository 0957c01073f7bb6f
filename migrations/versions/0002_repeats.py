# SPDX-License-Identifier: Apache-2.0
"""Answers kept for idempotency keys.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the table; releases before it neither read nor write it."""
    op.create_table(
        "operation_repeats",
        sa.Column("principal_id", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("payload_digest", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("at_us", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(
            ["principal_id"], ["principals.id"], name="fk_operation_repeats_principal_id"
        ),
        sa.PrimaryKeyConstraint("principal_id", "idempotency_key", name="pk_operation_repeats"),
        sqlite_strict=True,
    )
    op.create_index("ix_operation_repeats_at_us", "operation_repeats", ["at_us"])


def downgrade() -> None:
    """Drops the table; a request repeated afterwards would happen twice."""
    op.drop_table("operation_repeats")

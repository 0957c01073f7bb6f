# SPDX-License-Identifier: Apache-2.0
"""The outbox: epochs that are still to be told.

Revision ID: 0009
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

from migrations.guards import latched

revision = "0009"
down_revision = "0007"
branch_labels = None
depends_on = None

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# Table → the columns that never change.
LATCHED: dict[str, tuple[str, ...]] = {"outbox": ("epoch", "document")}


def upgrade() -> None:
    """Adds the table; epochs of before are not told again."""
    op.create_table(
        "outbox",
        sa.Column("epoch", INT64, autoincrement=False, nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("delivered_at_us", INT64, nullable=True),
        sa.ForeignKeyConstraint(["epoch"], ["publications.epoch"], name="fk_outbox_epoch"),
        sa.PrimaryKeyConstraint("epoch", name="pk_outbox"),
        sqlite_strict=True,
    )
    # Few rows wait and all others are done: the index is as long as what waits.
    waits = sa.text("delivered_at_us IS NULL")
    op.create_index("ix_outbox_waiting", "outbox", ["epoch"], sqlite_where=waits, postgresql_where=waits)
    for table, fixed in LATCHED.items():
        latched(table, fixed, "OLD.delivered_at_us IS NOT NULL")


def downgrade() -> None:
    """Refuses: what was told, and when, would be lost."""
    raise NotImplementedError("what was told is never forgotten")

# SPDX-License-Identifier: Apache-2.0
"""Seals over every row that is written, and what waits to be sealed.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

from migrations.guards import append_only, gapless

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# Table → primary key and unique keys.
APPEND_ONLY: dict[str, tuple[tuple[str, ...], ...]] = {"seals": (("seq",),)}


def upgrade() -> None:
    """Adds the tables; what was written before is sealed when the database is opened."""
    op.create_table(
        "seals",
        sa.Column("seq", INT64, autoincrement=False, nullable=False),
        sa.Column("at_us", INT64, nullable=False),
        sa.Column("rows", INT64, nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("document_digest", sa.Text(), nullable=False),
        sa.Column("prev_hash", sa.Text(), nullable=False),
        sa.Column("leaf_hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_seals"),
        sqlite_strict=True,
    )
    op.create_table(
        "seal_drafts",
        sa.Column("id", INT64, autoincrement=True, nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_seal_drafts"),
        sqlite_strict=True,
    )
    append_only("seals", APPEND_ONLY["seals"])
    gapless("seals", "seq")


def downgrade() -> None:
    """Refuses: what was sealed could no longer be proven."""
    raise NotImplementedError("seals are never forgotten")

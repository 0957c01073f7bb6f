# SPDX-License-Identifier: Apache-2.0
"""The key with which a request was admitted, so that revoking it ends the request.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

from migrations.guards import refuse

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Table → further columns that never change.
LATCHED: dict[str, tuple[str, ...]] = {"reservations": ("key_id",)}


def upgrade() -> None:
    """Adds the column; requests admitted before have an empty one, which no key has."""
    op.add_column("reservations", sa.Column("key_id", sa.Text(), nullable=False, server_default=""))
    changed = "OLD.key_id IS DISTINCT FROM NEW.key_id"
    refuse("reservations", "key", "UPDATE", changed, "the facts of reservations never change")


def downgrade() -> None:
    """Refuses: which key opened a request would be lost."""
    raise NotImplementedError("the key of a reservation is never forgotten")

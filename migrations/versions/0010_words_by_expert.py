# SPDX-License-Identifier: Apache-2.0
"""Consents and grants are found by expert: the guard against overlaps looks for others with every new one.

Revision ID: 0010
Revises: 0009
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds indexes, which releases before it keep up without knowing of them."""
    op.create_index("ix_consents_expert_id", "consents", ["expert_id"])
    op.create_index("ix_grants_expert_id", "grants", ["expert_id"])


def downgrade() -> None:
    """Takes them away."""
    op.drop_index("ix_grants_expert_id", "grants")
    op.drop_index("ix_consents_expert_id", "consents")

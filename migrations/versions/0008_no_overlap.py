# SPDX-License-Identifier: Apache-2.0
"""One permission at a time: live words that say the same do not overlap; deployments count their versions.

Revision ID: 0008
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

from migrations.guards import no_overlap, refuse

revision = "0008"
down_revision = "0006"
branch_labels = None
depends_on = None

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# What makes two words the same. Prohibitions are left out: a second one takes nothing away from the first,
# and narrowing is never refused.
CONSENT = ("tenant", "expert_id", "dataset_id", "action", "purpose", "region", "recipient", "commercial")
GRANT = ("tenant", "expert_id", "consumer_tenant", "action", "purpose", "region", "commercial")


def upgrade() -> None:
    """Adds guards, which judge new rows alone, and a column that releases before it leave at its default."""
    no_overlap("consents", CONSENT, "{row}effect = 'permit' AND {row}state = 'given'")
    no_overlap("grants", GRANT, "{row}state = 'given'")
    op.add_column("deployments", sa.Column("version", INT64, nullable=False, server_default="1"))
    refuse(
        "deployments", "version", "UPDATE", "NEW.version < OLD.version", "versions of deployments only go up"
    )


def downgrade() -> None:
    """Refuses: overlapping words would come in that no guard could take out again."""
    raise NotImplementedError("words that do not overlap stay so")

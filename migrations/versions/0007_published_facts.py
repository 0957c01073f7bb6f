# SPDX-License-Identifier: Apache-2.0
"""Published facts with the epochs that they held for, and notes of what changed since the last epoch.

Revision ID: 0007
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

from migrations.guards import latched, refuse

revision = "0007"
down_revision = "0008"
branch_labels = None
depends_on = None

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# Table → the columns that never change.
LATCHED: dict[str, tuple[str, ...]] = {"published_facts": ("kind", "identity", "from_epoch", "document")}

# Table → the column that says which fact is meant. Whatever feeds a snapshot stands here.
SOURCES = {
    "tenants": "slug",
    "bases": "base_digest",
    "experts": "expert_id",
    "expert_datasets": "expert_id",
    "listings": "expert_id",
    "datasets": "id",
    "consents": "id",
    "grants": "id",
    "rules": "id",
    "deployments": "name",
}


def upgrade() -> None:
    """Adds the tables; the first publication afterwards fills them, for nothing is noted before it."""
    op.create_table(
        "published_facts",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("from_epoch", INT64, autoincrement=False, nullable=False),
        sa.Column("until_epoch", INT64, nullable=True),
        sa.Column("document", sa.Text(), nullable=False),
        sa.CheckConstraint("until_epoch > from_epoch", name="ck_published_facts_interval"),
        sa.ForeignKeyConstraint(["from_epoch"], ["publications.epoch"], name="fk_published_facts_from_epoch"),
        sa.ForeignKeyConstraint(
            ["until_epoch"], ["publications.epoch"], name="fk_published_facts_until_epoch"
        ),
        sa.PrimaryKeyConstraint("kind", "identity", "from_epoch", name="pk_published_facts"),
        sqlite_strict=True,
    )
    op.create_index("ix_published_facts_from_epoch", "published_facts", ["from_epoch"])
    op.create_index("ix_published_facts_until_epoch", "published_facts", ["until_epoch"])
    for table, fixed in LATCHED.items():
        latched(table, fixed, "OLD.until_epoch IS NOT NULL")
    # SQLite's INSERT OR REPLACE deletes what is in its way without firing deletion triggers.
    open_already = (
        "EXISTS (SELECT 1 FROM published_facts WHERE kind = NEW.kind AND identity = NEW.identity "
        "AND (until_epoch IS NULL OR from_epoch = NEW.from_epoch))"
    )
    refuse("published_facts", "one", "INSERT", open_already, "a published fact is closed before the next one")
    op.create_table(
        "unpublished",
        sa.Column("n", INT64, sa.Identity(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("n", name="pk_unpublished"),
        sqlite_strict=True,
    )
    for table, column in SOURCES.items():
        _note(table, column)


def _note(table: str, column: str) -> None:
    """Has every row that is written noted, by whatever statement."""
    name = f"guard_{table}_note"
    note = f"INSERT INTO unpublished (source, identity) SELECT '{table}', NEW.{column}"
    if op.get_bind().dialect.name == "sqlite":
        for event in ("INSERT", "UPDATE"):
            op.execute(
                f"CREATE TRIGGER {name}_{event.lower()} AFTER {event} ON {table} FOR EACH ROW "
                f"BEGIN {note}; END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {note}; RETURN NULL; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {name} AFTER INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()"
    )


def downgrade() -> None:
    """Refuses: what was published from here on would be lost."""
    raise NotImplementedError("published facts are never forgotten")

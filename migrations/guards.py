# SPDX-License-Identifier: Apache-2.0
"""Triggers that refuse, written once for SQLite and PostgreSQL.

A guard is a condition in SQL that both engines read; where it holds, the statement fails and the unit of work
with it. Code above may have bugs and people may use raw SQL: the promises about what is never changed rest
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from alembic import op

Event = Literal["INSERT", "UPDATE", "DELETE"]


def refuse(table: str, name: str, event: Event, when: str, message: str) -> None:
    """Refuses rows of one event on which a condition holds.

    Args:
        table: guarded table.
        name: unique within the table.
        event: what is guarded, always before it happens.
        when: SQL over NEW and OLD; "differs from" is spelled ``IS DISTINCT FROM``.
        message: what the database says, without quotes.
    """
    trigger = f"guard_{table}_{name}"
    if op.get_bind().dialect.name == "sqlite":
        # SQLite learned IS DISTINCT FROM in 3.39; IS NOT means the same there in every release.
        condition = when.replace("IS DISTINCT FROM", "IS NOT")
        op.execute(
            f"CREATE TRIGGER {trigger} BEFORE {event} ON {table} FOR EACH ROW WHEN {condition} "
            f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
        )
        return
    kept = "OLD" if event == "DELETE" else "NEW"
    op.execute(
        f"CREATE FUNCTION {trigger}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF {when} THEN RAISE EXCEPTION '{message}' USING ERRCODE = 'integrity_constraint_violation'; "
        f"END IF; RETURN {kept}; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {trigger} BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION {trigger}()"
    )


def append_only(table: str, keys: Sequence[Sequence[str]]) -> None:
    """Refuses every update and deletion, and insertions that would replace a row.

    Args:
        table: guarded table.
        keys: its primary key and unique keys. SQLite's ``INSERT OR REPLACE`` deletes the row that is in its
            way without firing deletion triggers.
    """
    message = f"{table} is append-only"
    refuse(table, "update", "UPDATE", "1 = 1", message)
    refuse(table, "delete", "DELETE", "1 = 1", message)
    if op.get_bind().dialect.name == "sqlite":
        for number, key in enumerate(keys):
            same = " AND ".join(f"{column} = NEW.{column}" for column in key)
            exists = f"EXISTS (SELECT 1 FROM {table} WHERE {same})"  # noqa: S608 - words of the migration itself
            refuse(table, f"replace_{number}", "INSERT", exists, message)
    else:
        _no_truncate(table, message)


def latched(table: str, fixed: Sequence[str], stays: str) -> None:
    """Keeps the facts of a row for ever and lets only its state columns move, in one direction.

    Args:
        table: guarded table.
        fixed: the columns that never change.
        stays: condition over OLD and NEW that names the forbidden steps back.
    """
    changed = " OR ".join(f"OLD.{column} IS DISTINCT FROM NEW.{column}" for column in fixed)
    refuse(table, "fixed", "UPDATE", changed, f"the facts of {table} never change")
    refuse(table, "stays", "UPDATE", stays, f"{table} never go back to an earlier state")
    refuse(table, "delete", "DELETE", "1 = 1", f"{table} are never deleted")
    if op.get_bind().dialect.name == "postgresql":
        _no_truncate(table, f"{table} are never deleted")


def gapless(table: str, column: str, within: str | None = None) -> None:
    """Refuses a number that is not the successor of the highest one (1 if there is none)."""
    where = f" WHERE {within} = NEW.{within}" if within else ""
    successor = f"(SELECT COALESCE(MAX({column}), 0) + 1 FROM {table}{where})"  # noqa: S608 - as above
    refuse(table, "gapless", "INSERT", f"NEW.{column} <> {successor}", f"{table} has no gaps in {column}")


def _no_truncate(table: str, message: str) -> None:
    trigger = f"guard_{table}_truncate"
    op.execute(
        f"CREATE FUNCTION {trigger}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"RAISE EXCEPTION '{message}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {trigger} BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {trigger}()"
    )


def no_overlap(table: str, key: Sequence[str], live: str) -> None:
    """Refuses a row while a live one of the same key holds for some of the same time (half-open intervals).

    On PostgreSQL writers of one key wait for each other, so that neither misses what the other is about to
    commit; the lock's number may be shared by two keys, which costs a moment and nothing else. SQLite has one
    writer.

    Args:
        table: guarded table with ``state``, ``valid_from_us`` and ``valid_until_us`` (NULL: no end).
        key: the columns that say which rows speak of the same, ``expert_id`` (never NULL) among them.
        live: condition over a row's columns, each prefixed with ``{row}``, on which it counts.
    """
    same = " AND ".join(f"other.{column} IS NOT DISTINCT FROM NEW.{column}" for column in key)
    meets = (
        "other.valid_from_us < COALESCE(NEW.valid_until_us, 9223372036854775807) "
        "AND NEW.valid_from_us < COALESCE(other.valid_until_us, 9223372036854775807)"
    )
    found = (
        # Equality first: an index serves it on both engines, as it does not for what NULL also equals.
        f"EXISTS (SELECT 1 FROM {table} AS other "  # noqa: S608 - words of the migration itself
        f"WHERE other.expert_id = NEW.expert_id AND {same} AND {live.format(row='other.')} AND {meets})"
    )
    condition = f"{live.format(row='NEW.')} AND {found}"
    message = f"{table} overlap"
    if op.get_bind().dialect.name == "sqlite":
        refuse(table, "overlap", "INSERT", condition.replace("IS NOT DISTINCT FROM", "IS"), message)
        return
    words = ", ".join(f"NEW.{column}" for column in key)
    trigger = f"guard_{table}_overlap"
    op.execute(
        f"CREATE FUNCTION {trigger}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"PERFORM pg_advisory_xact_lock(hashtextextended(jsonb_build_array('{table}', {words})::text, 0)); "
        f"IF {condition} THEN RAISE EXCEPTION '{message}' USING ERRCODE = 'integrity_constraint_violation'; "
        f"END IF; RETURN NEW; END $$"
    )
    op.execute(f"CREATE TRIGGER {trigger} BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {trigger}()")

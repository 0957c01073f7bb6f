# SPDX-License-Identifier: Apache-2.0
"""Writes permissions that speak of a time in which no other one says the same.

The rule itself is a trigger of either database, which no writer gets around; here it becomes a refusal that
names the permission in the way. Prohibitions may overlap: narrowing is never refused.
"""

from __future__ import annotations

from typing import Final, NoReturn

from sqlalchemy import or_, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from policy.errors import Overlaps
from policy.tables import ConsentRow, GrantRow

#: Everything that a consent says but for its times.
CONSENT_WORDS: Final = (
    "tenant",
    "expert_id",
    "dataset_id",
    "effect",
    "action",
    "purpose",
    "region",
    "recipient",
    "commercial",
)
_GRANT: Final = ("tenant", "expert_id", "consumer_tenant", "action", "purpose", "region", "commercial")


def write_alone(session: Session, row: ConsentRow | GrantRow) -> None:
    """Writes a permission unless a live one of the same words holds for some of the same time.

    Raises:
        Overlaps: one does; it is named.
    """
    _check(session, row)
    try:
        with session.begin_nested():
            session.add(row)
            session.flush()
    except DBAPIError as error:
        # Another writer was faster, between the look above and the writing.
        if f"{row.__tablename__} overlap" not in str(error.orig):
            raise
        _check(session, row)
        _refuse(row, None)


def overlapping(session: Session, row: ConsentRow | GrantRow) -> str | None:
    """Id of a live permission of the same words that holds for some of a row's time."""
    table = type(row)
    query = select(table.id).where(
        table.state == "given",
        *(
            getattr(table, name).is_not_distinct_from(getattr(row, name))
            for name in (CONSENT_WORDS if isinstance(row, ConsentRow) else _GRANT)
        ),
        or_(table.valid_until_us.is_(None), table.valid_until_us > row.valid_from_us),
    )
    if row.valid_until_us is not None:
        query = query.where(table.valid_from_us < row.valid_until_us)
    return session.scalar(query.order_by(table.id).limit(1))


def _check(session: Session, row: ConsentRow | GrantRow) -> None:
    if isinstance(row, ConsentRow) and row.effect != "permit":
        return
    with session.no_autoflush:
        found = overlapping(session, row)
    if found is not None:
        _refuse(row, found)


def _refuse(row: ConsentRow | GrantRow, found: str | None) -> NoReturn:
    noun = "consent" if isinstance(row, ConsentRow) else "grant"
    raise Overlaps(
        f"Another {noun} says the same for some of this time. End that one first, or let this one begin when "
        "it ends.",
        kind=noun,
        existing=found,
    )

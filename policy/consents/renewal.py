# SPDX-License-Identifier: Apache-2.0
"""Renewing: the same word for longer. It widens, so it is an edit of a change that two people make.

The old word ends where the new one begins, in one unit of work: there is never a moment with two words or,
where the renewal begins at the old end, with none. Knows nothing of who may renew.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from model_core.packing.ids import new_id
from policy.consents.book import ConsentBook
from policy.errors import InvalidChange
from policy.guards.authority import unknown
from policy.guards.overlaps import CONSENT_WORDS, write_alone
from policy.records.items import ConsentRenew
from policy.tables import ConsentEventRow, ConsentRow


def check_renewal(session: Session, now_us: int, item: ConsentRenew) -> ConsentRow:
    """The word that is renewed.

    Raises:
        NotFound: no such consent.
        InvalidChange: it was withdrawn, was renewed before, or would not last longer.
    """
    old = session.get(ConsentRow, item.consent_id)
    if old is None or old.effect != "permit":
        raise unknown("consent", item.consent_id)
    last = ConsentBook(session, now_us).file(old.id).words[-1]
    if old.state != "given" or last.id != old.id:
        raise InvalidChange(
            "The consent was withdrawn or renewed before; renew the one that stands, or give a new one.",
            consent_id=old.id,
            last_id=last.id,
        )
    if old.valid_until_us is None:
        raise InvalidChange("The consent has no end, so there is nothing to renew.", consent_id=old.id)
    if item.valid_until_us is not None and item.valid_until_us <= max(old.valid_until_us, now_us):
        raise InvalidChange(
            "A renewal lasts longer than what it renews; give a later end, or withdraw to end it sooner.",
            consent_id=old.id,
        )
    start_us = now_us if item.valid_from_us is None else item.valid_from_us
    if now_us < start_us < old.valid_until_us or (item.valid_until_us or start_us + 1) <= start_us:
        raise InvalidChange(
            "A renewal begins now, or when the present consent ends, and ends after it began.",
            consent_id=old.id,
            ends_us=old.valid_until_us,
        )
    return old


def renew(session: Session, now_us: int, item: ConsentRenew, epoch: int, principal_id: str | None) -> str:
    """Writes the new word, ends the old one where they would overlap, and answers the new one's id.

    Args:
        session: the open unit of work.
        now_us: when it is published.
        item: the edit, checked before.
        epoch: the epoch that it is published with.
        principal_id: the author; None in a preview, which is rolled back and leaves no events.

    Raises:
        Overlaps: another word says the same for some of the new time.
    """
    old, book = check_renewal(session, now_us, item), ConsentBook(session, now_us)
    start_us = max(now_us, item.valid_from_us or now_us)
    if old.valid_until_us is not None and start_us < old.valid_until_us:
        book.end_word(old, principal_id, epoch)
    new = ConsentRow(
        **{name: getattr(old, name) for name in CONSENT_WORDS},
        id=new_id("con"),
        valid_from_us=start_us,
        valid_until_us=item.valid_until_us,
        state="given",
        at_us=now_us,
    )
    write_alone(session, new)
    if principal_id is not None:
        session.add(
            ConsentEventRow(
                consent_id=new.id, n=0, event="given", at_us=now_us, epoch=epoch, principal_id=principal_id
            )
        )
        book.note_renewed(old, new, item.paper, principal_id, epoch)
    return new.id

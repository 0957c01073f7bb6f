# SPDX-License-Identifier: Apache-2.0
"""Publishes epochs: freezes the facts of the register into a snapshot, once and for ever.

A publication that only narrows keeps, for every deployment, the last published members that are still
permitted and adds none; one that follows a reviewed change composes anew. An epoch is made out of the last
one and of what was written since, and equals one that is read anew (``rebuilt``). Knows nothing of who may
publish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from policy.audit.chain import Audit
from policy.compiled.standing import Standing, place_of
from policy.deciding.composition import Composition, compose
from policy.deciding.questions import Question
from policy.deciding.remembered import remembered
from policy.epochs import archive
from policy.epochs.reading import Reader, to_fact
from policy.errors import NotFound
from policy.facts import vocabulary
from policy.facts.kinds import Fact
from policy.facts.pauses import no_cycles_sought
from policy.facts.snapshot import FORMAT, Edits, Snapshot
from policy.facts.terms import ENGINE_VERSION
from policy.publishing.outbox import Outbox
from policy.publishing.touched import Touched, narrowed, touched_by
from policy.records.epochs import Publication
from policy.tables import PublicationRow
from tenants.accounts.database import lock_for_writing

PLATFORM_ACTOR: Final = "platform"

Members = Mapping[str, tuple[str, ...] | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draft:
    """An epoch that could be published.

    Attributes:
        snapshot: its facts.
        edits: how they differ from the last epoch's; None where there is none to compare with.
        touched: what of the last epoch's decisions may be otherwise.
    """

    snapshot: Snapshot
    edits: Edits | None
    touched: Touched


class Publisher:
    """Reads and writes epochs, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def lock(self) -> int:
        """Makes this unit of work the only one that publishes, and returns the epoch it would publish.

        Taken before anything is read that the publication rests on.
        """
        lock_for_writing(self._session, "register")
        return self.current_epoch() + 1

    def current_epoch(self) -> int:
        """The number of the last published epoch; 0 before the first."""
        return self._session.scalar(select(func.max(PublicationRow.epoch))) or 0

    def publication(self, epoch: int) -> Publication:
        """One epoch.

        Raises:
            NotFound: it was never published.
        """
        row = self._session.get(PublicationRow, epoch)
        if row is None:
            raise NotFound(f"Epoch {epoch} was never published; ask for the current one.", epoch=epoch)
        return to_fact(Publication, row)

    def publications(self, after: int = 0, limit: int = 100) -> list[Publication]:
        """Epochs after a number, oldest first."""
        query = select(PublicationRow).where(PublicationRow.epoch > after)
        rows = self._session.scalars(query.order_by(PublicationRow.epoch).limit(limit))
        return [to_fact(Publication, row) for row in rows]

    def snapshot(self, epoch: int | None = None) -> Snapshot:
        """The facts of an epoch, checked against its published digest; of the current one with None.

        Raises:
            NotFound: the epoch was never published.
            SnapshotMismatch: the stored bytes are not the published ones.
        """
        number = self.current_epoch() if epoch is None else epoch
        if number == 0 and epoch is None:
            return self._read_anew(self._head(0, self._now_us), {})
        return archive.read(self._session, number, self.publication(number).snapshot_digest)

    def standing(self) -> Standing:
        """The current epoch with what its deployments run; read once by this process, then kept.

        Raises:
            SnapshotMismatch: the stored bytes are not the published ones.
        """
        query = select(PublicationRow.epoch, PublicationRow.snapshot_digest)
        newest = self._session.execute(query.order_by(PublicationRow.epoch.desc()).limit(1)).first()
        if newest is None:
            return Standing(self.snapshot())
        return self._kept(*newest)

    def known(self, epoch: int) -> Snapshot:
        """The facts of an epoch, not read again where this process has read or made them.

        Raises:
            NotFound: the epoch was never published.
            SnapshotMismatch: the stored bytes are not the published ones.
        """
        return self._kept(epoch, self.publication(epoch).snapshot_digest).snapshot

    def _kept(self, epoch: int, digest: str) -> Standing:
        place = place_of(digest)
        if not place:
            place.append(Standing(self.snapshot(epoch)))
        return place[0]

    def draft(self, *, widens: bool) -> Snapshot:
        """The snapshot that would be published now from the facts as they are in this unit of work."""
        self._session.flush()
        return self._drafted(archive.notes(self._session), widens=widens).snapshot

    def rebuilt(self, *, widens: bool) -> Snapshot:
        """What ``draft`` says, read from every row of the register anew."""
        head, before = self._next()
        last = _last_members(before, widens=widens)
        with no_cycles_sought():
            snapshot = self._read_anew(head, last)
            return snapshot.changed({}, _composed(snapshot, last, _composed_anew, widens=widens))

    def publish(
        self,
        *,
        reason: str,
        subject: str,
        principal_id: str | None,
        change_id: str | None = None,
        widens: bool = False,
    ) -> Publication:
        """Publishes the facts as they are in this unit of work as the next epoch, and chains the act."""
        self._session.flush()
        drafted = self._drafted(archive.take_notes(self._session), widens=widens)
        snapshot = drafted.snapshot
        place_of(snapshot.digest).append(Standing(snapshot))
        row = PublicationRow(
            epoch=snapshot.epoch,
            at_us=snapshot.published_at_us,
            snapshot_digest=snapshot.digest,
            reason=reason,
            subject=subject,
            principal_id=principal_id,
            change_id=change_id,
        )
        self._session.add(row)
        self._session.flush()
        archive.write(self._session, snapshot, drafted.edits)
        self._session.info[Touched] = (snapshot.epoch, drafted.touched)
        Audit(self._session, self._now_us).append(
            principal_id or PLATFORM_ACTOR,
            "epoch.publish",
            f"epoch:{snapshot.epoch}",
            {
                "snapshot_digest": snapshot.digest,
                "reason": reason,
                "subject": subject,
                "change_id": change_id,
            },
        )
        publication = to_fact(Publication, row)
        Outbox(self._session, self._now_us).put(publication)
        return publication

    def touched(self, epoch: int) -> Touched:
        """Whose decisions an epoch turned; everybody's where this unit of work did not publish it."""
        published, touched = self._session.info.get(Touched, (None, None))
        return touched if published == epoch and touched is not None else Touched(everything=True)

    def _drafted(self, notes: Iterable[tuple[str, str]], *, widens: bool) -> _Draft:
        head, before = self._next()
        last = _last_members(before, widens=widens)
        if before is None or before.format != FORMAT:
            snapshot = self._read_anew(head, last)
            snapshot = snapshot.changed({}, _composed(snapshot, last, _composed_anew, widens=widens))
            return _Draft(snapshot=snapshot, edits=None, touched=Touched(everything=True))
        edits = Reader(self._session).some(before, notes, last)
        if widens:
            # Until they are composed anew, deployments are as if they had never been reviewed.
            edits |= {
                ("deployments", fact.name): fact.model_copy(update={"members": None})
                for fact in before.deployments
                if fact.members is not None and ("deployments", fact.name) not in edits
            }
        # What the last epoch knows of itself is carried on to the next. So moments are looked for before the
        # next is made: once by this process, and never again among all words.
        _ = before.upcoming
        snapshot = before.changed(head, edits)
        touched = touched_by(before, snapshot, edits)
        if widens or touched.everything:
            whole = _composed(snapshot, last, remembered().compose, widens=widens)
        else:
            whole = narrowed(snapshot, touched)
        settled = {key: fact for key, fact in whole.items() if snapshot.fact(*key) != fact}
        edits = {key: fact for key, fact in {**edits, **settled}.items() if before.fact(*key) != fact}
        return _Draft(snapshot=snapshot.changed({}, settled), edits=edits, touched=touched)

    def _next(self) -> tuple[dict[str, Any], Snapshot | None]:
        """The head of the epoch that comes next, and the one before it; None before the first."""
        epoch, at_us = self.current_epoch() + 1, self._now_us
        before = self.known(epoch - 1) if epoch > 1 else None
        if before is not None:
            # A clock that was set back must never hinder a withdrawal; the published time just stands still.
            at_us = max(at_us, before.published_at_us)
        return self._head(epoch, at_us), before

    def _head(self, epoch: int, at_us: int) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "published_at_us": at_us,
            "vocabulary_version": vocabulary.CURRENT_VERSION,
            "engine_version": ENGINE_VERSION,
            "format": FORMAT,
        }

    def _read_anew(self, head: Mapping[str, Any], members: Members) -> Snapshot:
        with no_cycles_sought():
            return Snapshot.of_facts(head, Reader(self._session).all(members))


def _last_members(before: Snapshot | None, *, widens: bool) -> Members:
    if before is None or widens:
        return {}
    return {fact.name: fact.members or () for fact in before.deployments}


def _composed_anew(snapshot: Snapshot, deployment: str, at_us: int) -> Composition:
    """What a deployment runs, whatever was composed before."""
    return compose(snapshot, Question(at_us=at_us, deployment=deployment))


def _composed(
    snapshot: Snapshot,
    last: Members,
    composer: Callable[[Snapshot, str, int], Composition],
    *,
    widens: bool,
) -> dict[tuple[str, str], Fact | None]:
    """Every deployment with its members, composed."""
    at_us = snapshot.published_at_us
    facts: dict[tuple[str, str], Fact | None] = {}
    for fact in snapshot.deployments:
        members = {member.bundle_digest for member in composer(snapshot, fact.name, at_us).members}
        if not widens:
            # compose() promises this too; here it is the register's own word (an epoch that only narrows
            # may remove members of a live composition, never add).
            members &= set(last.get(fact.name) or ())
        facts["deployments", fact.name] = fact.model_copy(update={"members": tuple(sorted(members))})
    return facts

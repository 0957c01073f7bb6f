# SPDX-License-Identifier: Apache-2.0
"""What was known when: facts and decisions at one moment as the register stood at another.

Two times tell everything that a fact says: from when until when it holds (valid time, ``valid_from_us`` and
``valid_until_us``, or without end), and from which epoch until which the register said so (recorded time,
half-open). A question at a moment, asked of the register as it stood at another, is answered from the epoch
that was the newest then; epochs are never rewritten, so the answer is the same whenever it is asked.

A fact that is recorded late, for a time that has passed, changes no old decision. ``corrections`` says which
logged decisions would have been otherwise had it been recorded in time. It changes and logs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from policy.deciding.composition import Composition, compose
from policy.deciding.matching import not_over
from policy.deciding.questions import Question
from policy.errors import NotFound
from policy.facts.kinds import KINDS, ConsentFact, GrantFact
from policy.facts.snapshot import Edits, Snapshot
from policy.facts.turns import WORDS
from policy.publishing.publication import Publisher
from policy.publishing.touched import touched_by
from policy.records.epochs import Publication
from policy.records.record import Record
from policy.tables import DecisionRow, PublicationRow, PublishedFactRow

MAX_CORRECTIONS: Final = 1000
_AT_ONCE: Final = 500  # rows of the log in memory at a time

Word = ConsentFact | GrantFact


class RecordedFact(Record):
    """One form of a fact and when the register said so; ``recorded_until_us`` None: it still does."""

    kind: str
    identity: str
    from_epoch: int
    until_epoch: int | None
    recorded_from_us: int
    recorded_until_us: int | None
    document: str


class AsOf(Record):
    """What the register said at one moment of another.

    Attributes:
        valid_us: the moment that is spoken of.
        recorded_us: the moment of speaking.
        publication: the newest epoch then.
        consents: words that stood and held.
        grants: accesses that stood and held.
        composition: what a deployment would have run, if one was asked about.
    """

    valid_us: int
    recorded_us: int
    publication: Publication
    consents: tuple[ConsentFact, ...]
    grants: tuple[GrantFact, ...]
    composition: Composition | None


class Correction(Record):
    """A logged decision that would have been otherwise.

    Attributes:
        epoch: the one that recorded something late.
        facts: ids of the consents and grants that it recorded late and that reach this decision.
        decision_id: the logged answer; it stays as it is.
        deployment: whose it was; empty for a use spelled out.
        consumer_tenant: who asked.
        at_us: the first moment at which the decision stood and the facts held.
        gained: expert ids that would have been permitted.
        lost: expert ids that would have been denied.
    """

    epoch: int
    facts: tuple[str, ...]
    decision_id: str
    deployment: str
    consumer_tenant: str
    at_us: int
    gained: tuple[str, ...]
    lost: tuple[str, ...]


class History:
    """The past of the register, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._publisher = Publisher(session, now_us)

    def epoch_at(self, recorded_us: int) -> int:
        """The newest epoch at a moment.

        Raises:
            NotFound: nothing had been published then.
        """
        query = select(func.max(PublicationRow.epoch)).where(PublicationRow.at_us <= recorded_us)
        epoch = self._session.scalar(query)
        if epoch is None:
            raise NotFound("Nothing had been published at that moment; ask for a later one.")
        return epoch

    def as_of(self, *, valid_us: int, recorded_us: int, deployment: str | None = None) -> AsOf:
        """What the register said at one moment of another.

        Args:
            valid_us: the moment that is asked about, microseconds since the Unix epoch.
            recorded_us: as the register stood then; an epoch counts from its publication on.
            deployment: also what this deployment would have run at ``valid_us``.

        Raises:
            NotFound: nothing had been published then.
            UnknownDeployment: that epoch does not hold the deployment.
            SnapshotMismatch: the stored epoch is not the published one.
        """
        epoch = self.epoch_at(recorded_us)
        snapshot = self._publisher.known(epoch)
        composition = None
        if deployment is not None:
            composition = compose(snapshot, Question(at_us=valid_us, deployment=deployment))
        return AsOf(
            valid_us=valid_us,
            recorded_us=recorded_us,
            publication=self._publisher.publication(epoch),
            consents=tuple(word for word in snapshot.consents if _holds(word, valid_us)),
            grants=tuple(word for word in snapshot.grants if _holds(word, valid_us)),
            composition=composition,
        )

    def recorded(self, kind: str, identity: str) -> list[RecordedFact]:
        """Every form that a fact ever had, oldest first; none for what was never published."""
        row, begun, ended = PublishedFactRow, aliased(PublicationRow), aliased(PublicationRow)
        query = (
            select(row, begun.at_us, ended.at_us)
            .join(begun, begun.epoch == row.from_epoch)
            .join(ended, ended.epoch == row.until_epoch, isouter=True)
            .where(row.kind == kind, row.identity == identity)
            .order_by(row.from_epoch)
        )
        return [
            RecordedFact(
                kind=kind,
                identity=identity,
                from_epoch=fact.from_epoch,
                until_epoch=fact.until_epoch,
                recorded_from_us=from_us,
                recorded_until_us=until_us,
                document=fact.document,
            )
            for fact, from_us, until_us in self._session.execute(query)
        ]

    def corrections(self, epoch: int, limit: int = MAX_CORRECTIONS) -> list[Correction]:
        """Logged decisions that would have been otherwise had an epoch's late facts been recorded in time.

        The review of members is left aside on both sides: it is asked who would have been permitted, and an
        expert that nobody could review yet is no reason to call the decision right.

        Args:
            epoch: the one that recorded facts.
            limit: most corrections to find.

        Raises:
            NotFound: it was never published.
        """
        publication = self._publisher.publication(epoch)
        late = self._late(publication)
        found: list[Correction] = []
        if not late:
            return found
        since_us = min(word.valid_from_us for word in late.values())
        for row, until_us in self._standing(epoch, since_us, publication.at_us):
            reached = {key: word for key, word in late.items() if word.valid_from_us < until_us}
            correction = self._corrected(epoch, row, reached)
            if correction is not None:
                found.append(correction)
            if len(found) == limit:
                break
        return found

    def _late(self, publication: Publication) -> dict[tuple[str, str], Word]:
        """Words that an epoch was the first to hold, of a time before its publication."""
        row, earlier = PublishedFactRow, aliased(PublishedFactRow)
        known = (
            select(earlier.kind)
            .where(earlier.kind == row.kind, earlier.identity == row.identity)
            .where(earlier.from_epoch < publication.epoch)
        )
        query = select(row.kind, row.document).where(
            row.from_epoch == publication.epoch, row.kind.in_(WORDS), ~known.exists()
        )
        late: dict[tuple[str, str], Word] = {}
        for kind, document in self._session.execute(query):
            word = KINDS[kind][0].model_validate_json(document)
            if isinstance(word, ConsentFact | GrantFact) and word.valid_from_us < publication.at_us:
                late[kind, word.id] = word
        return late

    def _standing(self, epoch: int, since_us: int, until_us: int) -> Iterator[tuple[DecisionRow, int]]:
        """Logged decisions of earlier epochs that stood after a moment, and until when."""
        row = DecisionRow
        after = func.lead(row.at_us).over(partition_by=row.input_digest, order_by=(row.epoch, row.id))
        told = select(row.id, after.label("until_us")).where(row.epoch < epoch).subquery()
        query = select(row, func.coalesce(told.c.until_us, until_us)).join(told, told.c.id == row.id)
        query = query.where(func.coalesce(told.c.until_us, until_us) > since_us)
        ordered = query.order_by(row.epoch, row.id).execution_options(yield_per=_AT_ONCE)
        for found in self._session.execute(ordered):
            yield found[0], int(found[1])

    def _corrected(
        self, epoch: int, row: DecisionRow, late: Mapping[tuple[str, str], Word]
    ) -> Correction | None:
        snapshot = self._publisher.known(row.epoch)
        question = Question.model_validate_json(row.question)
        at_us = max(question.at_us, min(word.valid_from_us for word in late.values()))
        asked = question.model_copy(update={"at_us": at_us})
        fact = snapshot.deployments_by_name.get(row.deployment)
        edits: Edits = dict(late)
        if fact is not None:
            touched = touched_by(snapshot, snapshot.changed({}, edits), edits)
            if not touched.affects(fact):
                return None
            unreviewed = fact.model_copy(update={"members": None})
            snapshot = snapshot.changed({}, {("deployments", fact.name): unreviewed})
        was, would = _permitted(snapshot, asked), _permitted(snapshot.changed({}, edits), asked)
        if was == would:
            return None
        return Correction(
            epoch=epoch,
            facts=tuple(sorted(name for _, name in late)),
            decision_id=row.id,
            deployment=row.deployment,
            consumer_tenant=row.consumer_tenant,
            at_us=at_us,
            gained=tuple(sorted(would - was)),
            lost=tuple(sorted(was - would)),
        )


def _holds(word: Word, at_us: int) -> bool:
    return word.state == "given" and word.valid_from_us <= at_us and not_over(word, at_us)


def _permitted(snapshot: Snapshot, question: Question) -> set[str]:
    decisions = compose(snapshot, question).decisions
    return {one.expert_id for one in decisions if one.verdict == "permit"}

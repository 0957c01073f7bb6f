# SPDX-License-Identifier: Apache-2.0
"""The log of decisions: what was asked, what was answered, replayed at any later time.

Equal questions with equal answers within an epoch are one row: the moment of asking is not part of either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes, digest_bytes
from model_core.packing.ids import new_id
from policy.deciding.composition import Composition, compose
from policy.deciding.decision import Decision
from policy.deciding.questions import Question
from policy.deciding.reasons import is_denial
from policy.deciding.remembered import remembered
from policy.errors import NotFound
from policy.publishing.publication import Publisher
from policy.records.decisions import DecisionRecord, ReplayResult, VerdictRecord
from policy.tables import DecisionRow, DecisionVerdictRow, DeploymentRow
from tenants.accounts.database import lock_for_writing

# More names than this are not worth naming in a query.
_FEW: Final = 500


class DecisionLog:
    """The log room, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us
        self._publisher = Publisher(session, now_us)

    def record(self, composition: Composition, question: Question | None = None) -> str:
        """Logs an answer and returns the id of its row, an earlier one if the same was said before.

        Args:
            composition: the answer.
            question: what was asked; None stands for the deployment that the composition names.
        """
        asked = question or Question(at_us=composition.at_us, deployment=composition.deployment)
        stated = asked.model_dump(mode="json")
        input_digest = digest_bytes(canonical_bytes({**stated, "at_us": 0}))
        output_digest = _timeless_digest(composition)
        query = select(DecisionRow.id).where(
            DecisionRow.epoch == composition.epoch,
            DecisionRow.input_digest == input_digest,
            DecisionRow.output_digest == output_digest,
        )
        lock_for_writing(self._session, f"decision:{input_digest}")
        known = self._session.scalar(query)
        if known is not None:
            return known
        row = DecisionRow(
            id=new_id("dec"),
            epoch=composition.epoch,
            deployment=composition.deployment or "",
            consumer_tenant=composition.tenant,
            question=canonical_bytes(stated).decode(),
            input_digest=input_digest,
            answer=canonical_bytes(composition.model_dump(mode="json")).decode(),
            output_digest=output_digest,
            engine_version=composition.engine_version,
            at_us=self._now_us,
        )
        self._session.add(row)
        self._session.flush()
        for decision in composition.decisions:
            self._session.add(_verdict(row.id, decision))
        self._session.flush()
        return row.id

    def record_standing(self, epoch: int) -> None:
        """Logs what an epoch decides for every deployment whose answer it changed."""
        snapshot = self._publisher.known(epoch)
        touched = self._publisher.touched(epoch)
        at_us = snapshot.published_at_us
        affected = [fact for fact in snapshot.deployments if touched.affects(fact)]
        newest = self._newest([fact.name for fact in affected])
        for fact in affected:
            question = Question(at_us=at_us, deployment=fact.name)
            composed = None
            if touched.everything:
                # What is remembered says the same, but names the asking it is of; what is logged has to be
                # this one's own.
                verdicts = _verdicts(remembered().compose(snapshot, fact.name, at_us))
            else:
                composed = compose(snapshot, question)
                verdicts = _verdicts(composed)
            if fact.name not in newest or self._said(fact.name, newest[fact.name]) != verdicts:
                logged = self.record(composed or compose(snapshot, question), question)
                place_of_verdicts(fact.name)[:] = [(logged, verdicts)]

    def _newest(self, names: Sequence[str]) -> dict[str, str]:
        """Id of the last logged answer, by those of these deployments that have one."""
        row = DecisionRow
        last = (
            select(row.id)
            .where(row.deployment == DeploymentRow.name)
            .order_by(row.epoch.desc(), row.id.desc())
            .limit(1)
            .scalar_subquery()
        )
        query = select(DeploymentRow.name, last)
        if len(names) <= _FEW:
            query = query.where(DeploymentRow.name.in_(names))
        found = self._session.execute(query)
        return {name: decision_id for name, decision_id in found if decision_id is not None}

    def _said(self, deployment: str, decision_id: str) -> Any:
        place = place_of_verdicts(deployment)
        for known, verdicts in place:
            if known == decision_id:
                return verdicts
        verdicts = _verdicts(Composition.model_validate_json(self._row(decision_id).answer))
        place[:] = [(decision_id, verdicts)]
        return verdicts

    def list(
        self,
        *,
        tenant: str | None = None,
        deployment: str | None = None,
        expert_id: str | None = None,
        epoch: int | None = None,
        limit: int = 100,
    ) -> Records:
        """Logged answers, newest first, filtered by every argument that is given."""
        query = select(DecisionRow).order_by(DecisionRow.id.desc()).limit(limit)
        for column, value in (
            (DecisionRow.consumer_tenant, tenant),
            (DecisionRow.deployment, deployment),
            (DecisionRow.epoch, epoch),
        ):
            if value is not None:
                query = query.where(column == value)
        if expert_id is not None:
            about = select(DecisionVerdictRow.decision_id).where(DecisionVerdictRow.expert_id == expert_id)
            query = query.where(DecisionRow.id.in_(about))
        return [self._record(row) for row in self._session.scalars(query)]

    def get(self, decision_id: str) -> DecisionRecord:
        """One logged answer.

        Raises:
            NotFound: there is none with this id.
        """
        return self._record(self._row(decision_id))

    def replay(self, decision_id: str) -> ReplayResult:
        """Asks the same question of the same snapshot again and compares the answers byte by byte.

        Raises:
            NotFound: there is no such decision.
        """
        row = self._row(decision_id)
        snapshot = self._publisher.snapshot(row.epoch)
        answer = compose(snapshot, Question.model_validate_json(row.question))
        after = canonical_bytes(answer.model_dump(mode="json")).decode()
        return ReplayResult(
            decision_id=decision_id,
            equal=after == row.answer and row.output_digest == _timeless_digest(answer),
            before=row.answer,
            after=after,
        )

    def _row(self, decision_id: str) -> DecisionRow:
        row = self._session.get(DecisionRow, decision_id)
        if row is None:
            raise NotFound("There is no such decision; list the decisions.", id=decision_id)
        return row

    def _record(self, row: DecisionRow) -> DecisionRecord:
        query = select(DecisionVerdictRow).where(DecisionVerdictRow.decision_id == row.id)
        verdicts = self._session.scalars(query.order_by(DecisionVerdictRow.expert_id))
        return DecisionRecord(
            id=row.id,
            epoch=row.epoch,
            deployment=row.deployment,
            consumer_tenant=row.consumer_tenant,
            question=json.loads(row.question),
            output_digest=row.output_digest,
            engine_version=row.engine_version,
            at_us=row.at_us,
            verdicts=tuple(
                VerdictRecord(
                    expert_id=one.expert_id, verdict=one.verdict, outcome=one.outcome, code=one.code
                )
                for one in verdicts
            ),
            composition=Composition.model_validate_json(row.answer),
        )


# Named here because inside the class ``list`` is the method.
Records = list[DecisionRecord]


def _timeless_digest(composition: Composition) -> str:
    """The digest of an answer without the moments at which it was given."""
    document: dict[str, Any] = composition.model_dump(mode="json", exclude={"at_us"})
    for decision in document["decisions"]:
        decision.pop("at_us")
    return digest_bytes(canonical_bytes(document))


def _verdicts(composition: Composition) -> Any:
    """What an answer says of its experts, without the epoch and the moment it was said at."""
    said = [(one.expert_id, one.verdict, one.outcome, one.valid_until_us) for one in composition.decisions]
    return composition.digest, composition.verdict, said


@lru_cache(maxsize=4096)
def place_of_verdicts(deployment: str) -> list[tuple[str, Any]]:
    """Where the last logged answer of a deployment is kept: its id and its verdicts, which never change.

    Only the last one is compared with. What is kept of an answer whose unit of work was undone goes by an id
    that no row has.
    """
    del deployment
    return []


def _verdict(decision_id: str, decision: Decision) -> DecisionVerdictRow:
    denial = next((one.code for one in decision.reasons if is_denial(one)), "")
    return DecisionVerdictRow(
        decision_id=decision_id,
        expert_id=decision.expert_id,
        verdict=decision.verdict,
        outcome=decision.outcome,
        code=denial,
    )

# SPDX-License-Identifier: Apache-2.0
"""What experts are worth: measured quality and booked revenue, and what of both a change moves.

Reads measurements and usage; what is not there is named as unknown. Knows nothing of how experts are judged:
a measurement is somebody's word with the digest of its evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from model_core.packing.canonical import check_digest
from model_core.packing.ids import new_id
from policy.billing import ledger
from policy.billing.metering import Metering
from policy.epochs.reading import to_fact
from policy.facts.snapshot import Snapshot
from policy.facts.terms import ANY
from policy.guards.authority import unknown
from policy.preview.report import DeploymentImpact, MoneyImpact, QualityImpact
from policy.records.assets import EvaluationRecord
from policy.tables import EvaluationRow, ExpertRow
from tenants.roles import Principal

USAGE_US: Final = 30 * 24 * 3600 * 1_000_000
"""Usage of the last thirty days stands for what is to come."""


UNMEASURED: Final = "unknown"
"""The metric of deployments of whose experts nothing was ever measured."""


class Worth:
    """Measurements and revenue, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def record(
        self,
        principal: Principal,
        expert_id: str,
        metric: str,
        value_micro: int,
        evidence_digest: str,
        deployment: str = ANY,
    ) -> EvaluationRecord:
        """Takes somebody's leave-one-out value of an expert; the last one of each metric counts.

        Args:
            principal: who measured.
            expert_id: the expert that was left out.
            metric: what was measured, as ``bits_per_byte``.
            value_micro: how much worse it gets without the expert, in millionths of the metric's unit.
            evidence_digest: of whatever shows it.
            deployment: where it was measured; ``*`` for outside any.

        Raises:
            NotFound: no such expert.
            InvalidDigest: the evidence has no digest.
        """
        if self._session.get(ExpertRow, expert_id) is None:
            raise unknown("expert", expert_id)
        row = EvaluationRow(
            id=new_id("evl"),
            expert_id=expert_id,
            tenant=principal.tenant,
            deployment=deployment,
            metric=metric,
            value_micro=value_micro,
            evidence_digest=check_digest(evidence_digest),
            principal_id=principal.id,
            at_us=self._now_us,
        )
        self._session.add(row)
        self._session.flush()
        return _record(row)

    def evaluations(self, expert_id: str | None = None) -> list[EvaluationRecord]:
        """Measurements, newest first; of one expert, or of all with None."""
        query = select(EvaluationRow).order_by(EvaluationRow.id.desc())
        if expert_id is not None:
            query = query.where(EvaluationRow.expert_id == expert_id)
        return [_record(row) for row in self._session.scalars(query)]

    def judged(self, found: Sequence[DeploymentImpact]) -> tuple[DeploymentImpact, ...]:
        """Deployments with what the experts that come and go are worth to them."""
        moved = {one for row in found for one in (*row.gained, *row.lost)}
        query = select(EvaluationRow).where(EvaluationRow.expert_id.in_(moved)).order_by(EvaluationRow.id)
        # Later measurements overwrite earlier ones.
        known = {(row.metric, row.expert_id, row.deployment): row for row in self._session.scalars(query)}
        metrics = sorted({metric for metric, _, _ in known}) or [UNMEASURED]
        return tuple(
            row.model_copy(update={"quality": tuple(_quality(one, row, known) for one in metrics)})
            if row.gained or row.lost
            else row
            for row in found
        )

    def moved(
        self, found: Iterable[DeploymentImpact], before: Snapshot, after: Snapshot
    ) -> tuple[tuple[MoneyImpact, ...], int, int]:
        """Lines of revenue that a change moves, and the sums before and after it.

        The tokens that an expert computed for a deployment earn nothing where it goes, and the new price
        where it stays under one.
        """
        stays = {row.deployment: frozenset(row.after) for row in found}
        old, new = _prices(before), _prices(after)
        lines, total, total_after = [], 0, 0
        for row in Metering(self._session, self._now_us).usage(since_us=self._now_us - USAGE_US):
            if row.expert_id is None:
                continue
            then = 0
            if row.expert_id in stays.get(row.deployment, frozenset()):
                kept = old.get(row.expert_id) == new[row.expert_id]
                then = row.amount_micro if kept else row.ppm_tokens * new[row.expert_id] // ledger.UNIT
            total, total_after = total + row.amount_micro, total_after + then
            if then != row.amount_micro:
                lines.append(
                    MoneyImpact(
                        deployment=row.deployment,
                        consumer=row.tenant,
                        expert_id=row.expert_id,
                        owner=row.owner,
                        ppm_tokens=row.ppm_tokens,
                        before_micro=row.amount_micro,
                        after_micro=then,
                    )
                )
        return tuple(lines), total, total_after


_Known = dict[tuple[str, str, str], EvaluationRow]


def _prices(snapshot: Snapshot) -> dict[str, int]:
    return {fact.expert_id: fact.price_micro_per_1k_tokens for fact in snapshot.experts}


def _quality(metric: str, row: DeploymentImpact, known: _Known) -> QualityImpact:
    cost, cited, unmeasured = 0, [], []
    for sign, experts in ((1, row.lost), (-1, row.gained)):
        for expert_id in experts:
            value = known.get((metric, expert_id, row.deployment)) or known.get((metric, expert_id, ANY))
            if value is None:
                unmeasured.append(expert_id)
            else:
                cost += sign * value.value_micro
                cited.append(value.id)
    return QualityImpact(
        metric=metric, cost_micro=cost, evaluations=tuple(sorted(cited)), unknown=tuple(sorted(unmeasured))
    )


def _record(row: EvaluationRow) -> EvaluationRecord:
    return to_fact(EvaluationRecord, row)

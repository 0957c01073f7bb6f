# SPDX-License-Identifier: Apache-2.0
"""Impact reports: made for a draft before it is approved, and for what narrowed at once afterwards.

Weighing a change reads the whole decision log and may take long, so its steps need not be one unit of work:
``plan_change`` carries the edits out and rolls them back, ``begin``, ``ask_page`` and ``finish`` read,
``store`` keeps. A report is bound to the digest of the change and to the epoch that it was compared with; a
later edit or epoch makes it stale, and says so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from policy.changing.changes import Changes
from policy.deciding.questions import Question
from policy.facts.snapshot import Snapshot
from policy.facts.terms import ENGINE_VERSION
from policy.preview.asking import Asking
from policy.preview.report import DeploymentImpact, ExpertImpact, ImpactReport
from policy.preview.worth import USAGE_US, Worth
from policy.publishing.publication import Publisher
from policy.records.items import ChangeItem
from policy.tables import ChangeRow, DecisionRow, ImpactReportRow, PublicationRow

PAGE: Final = 5_000
RECENT_US: Final = 7 * 24 * 3600 * 1_000_000
"""Publications older than this get no report any more: what was to be seen has been seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Two snapshots that are to be compared, and of what."""

    before: Snapshot
    after: Snapshot
    change_id: str | None = None
    change_digest: str = ""
    epoch: int | None = None


class Previews:
    """The weighing room, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us
        self._publisher = Publisher(session, now_us)
        self._changes = Changes(session, now_us)

    def plan_change(self, change_id: str) -> Plan:
        """The register as it is, and as it would be with the change; leaves nothing behind.

        Raises:
            NotFound: no such change.
        """
        record = self._changes.get(change_id, previewed=False)
        before = self._publisher.standing().snapshot
        with self._changes.carried_out(record.items, record.tenant) as after:
            return Plan(before=before, after=after, change_id=change_id, change_digest=record.digest)

    def plan_publication(self, epoch: int) -> Plan:
        """The register before and after a published epoch above the first.

        Raises:
            NotFound: it was never published.
        """
        before, after = self._publisher.known(epoch - 1), self._publisher.known(epoch)
        return Plan(before=before, after=after, epoch=epoch)

    def weigh(self, plan: Plan) -> ImpactReport:
        """Asks every logged decision and every live deployment of both snapshots; only reads."""
        asking = self.begin(plan)
        last: str | None = ""
        while last is not None:
            last = self.ask_page(asking, last)
        return self.finish(plan, asking)

    def begin(self, plan: Plan) -> Asking:
        """Lays both snapshots side by side; pages of the log follow, each in a unit of work of its own."""
        return Asking(plan.before, plan.after, max(self._now_us, plan.after.published_at_us))

    def ask_page(self, asking: Asking, after: str) -> str | None:
        """Asks the page of the log that follows a decision; returns its last one, or None at the end."""
        query = select(DecisionRow.id, DecisionRow.consumer_tenant, DecisionRow.question)
        ordered = query.where(DecisionRow.id > after).order_by(DecisionRow.id).limit(PAGE)
        page = self._session.execute(ordered).all()
        asking.ask([(tenant, Question.model_validate_json(asked)) for _, tenant, asked in page])
        return str(page[-1][0]) if page else None

    def finish(self, plan: Plan, asking: Asking) -> ImpactReport:
        """The report of everything that was asked, with what deployments, quality and money say."""
        worth = Worth(self._session, self._now_us)
        deployments = worth.judged(asking.deployments())
        money, revenue, revenue_after = worth.moved(deployments, plan.before, plan.after)
        gone, come = _by_expert(deployments)
        experts = [
            ExpertImpact(
                expert_id=expert_id,
                name=member.name,
                tenant=member.tenant,
                decisions_gained=asking.gained[expert_id],
                decisions_lost=asking.lost[expert_id],
                deployments_gained=tuple(come.get(expert_id, ())),
                deployments_lost=tuple(gone.get(expert_id, ())),
            )
            for expert_id, member in sorted(asking.members.items())
        ]
        return ImpactReport(
            change_id=plan.change_id,
            change_digest=plan.change_digest,
            epoch=plan.epoch,
            epoch_base=plan.before.epoch,
            at_us=asking.at_us,
            usage_since_us=max(0, self._now_us - USAGE_US),
            engine_version=ENGINE_VERSION,
            decisions=asking.decisions,
            decisions_changed=asking.changed,
            decisions_stopped=asking.stopped,
            decisions_begun=asking.begun,
            experts=tuple(experts),
            consumers=asking.consumers(),
            deployments=deployments,
            money=money,
            revenue_micro=revenue,
            revenue_after_micro=revenue_after,
        )

    def simulate(self, items: Sequence[ChangeItem], tenant: str) -> ImpactReport:
        """Weighs edits that nobody has drafted, and keeps nothing; who may ask is settled elsewhere.

        Args:
            items: the edits.
            tenant: whose word they would be.
        """
        before = self._publisher.standing().snapshot
        with self._changes.carried_out(items, tenant) as after:
            plan = Plan(before=before, after=after)
        return self.weigh(plan)

    def store(self, report: ImpactReport) -> str:
        """Keeps a report of a change or a publication; returns its digest."""
        digest = report.digest
        if self._session.get(ImpactReportRow, digest) is None:
            self._session.add(
                ImpactReportRow(
                    digest=digest,
                    change_id=report.change_id,
                    change_digest=report.change_digest,
                    epoch=report.epoch,
                    epoch_base=report.epoch_base,
                    at_us=report.at_us,
                    document=report.to_json().decode(),
                )
            )
            self._session.flush()
        return digest

    def of_change(self, change_id: str) -> ImpactReport | None:
        """The newest report of a change."""
        query = select(ImpactReportRow).where(ImpactReportRow.change_id == change_id)
        return self._newest(query)

    def of_epoch(self, epoch: int) -> ImpactReport | None:
        """The newest report of a publication."""
        return self._newest(select(ImpactReportRow).where(ImpactReportRow.epoch == epoch))

    def is_stale(self, report: ImpactReport) -> bool:
        """Whether the change or the register is another than when a report of a change was made."""
        if report.change_id is None:
            return False
        row = self._session.get(ChangeRow, report.change_id)
        open_ = row is not None and row.state == "proposed"
        if row is not None and row.digest != report.change_digest:
            return True
        return open_ and report.epoch_base != self._publisher.current_epoch()

    def next_change(self, patience_us: int, without: Collection[str] = ()) -> str | None:
        """An open change that has no report, or a stale one that is older than the patience.

        Args:
            patience_us: how old a stale report may be.
            without: changes that are passed over.
        """
        report = ImpactReportRow
        made = select(report.change_id, report.at_us, report.change_digest, report.epoch_base)
        of_open = made.join(ChangeRow, ChangeRow.id == report.change_id).where(ChangeRow.state == "proposed")
        # The newest overwrites the others.
        newest = {row[0]: row for row in self._session.execute(of_open.order_by(report.at_us))}
        waiting = select(ChangeRow.id, ChangeRow.digest).where(ChangeRow.state == "proposed")
        epoch = self._publisher.current_epoch()
        for change_id, digest in self._session.execute(waiting.order_by(ChangeRow.id.desc())).all():
            if change_id in without:
                continue
            if change_id not in newest:
                return str(change_id)
            _, at_us, of_digest, epoch_base = newest[change_id]
            if (of_digest, epoch_base) != (digest, epoch) and self._now_us - at_us >= patience_us:
                return str(change_id)
        return None

    def next_publication(self) -> int | None:
        """The newest recent epoch without a report that no change was reviewed for."""
        known = select(ImpactReportRow.epoch).where(ImpactReportRow.epoch.is_not(None))
        query = (
            select(PublicationRow.epoch)
            .where(PublicationRow.change_id.is_(None), PublicationRow.epoch > 1)
            .where(PublicationRow.at_us > self._now_us - RECENT_US, PublicationRow.epoch.not_in(known))
            .order_by(PublicationRow.epoch.desc())
            .limit(1)
        )
        return self._session.scalar(query)

    def _newest(self, query: Select[ImpactReportRow]) -> ImpactReport | None:
        # By position in time, and by digest where two were made at the same moment.
        ordered = query.order_by(ImpactReportRow.at_us.desc(), ImpactReportRow.digest).limit(1)
        row = self._session.scalars(ordered).one_or_none()
        return None if row is None else ImpactReport.model_validate_json(row.document)


def _by_expert(found: Sequence[DeploymentImpact]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    gone: dict[str, list[str]] = {}
    come: dict[str, list[str]] = {}
    for row in found:
        for expert_id in row.lost:
            gone.setdefault(expert_id, []).append(row.deployment)
        for expert_id in row.gained:
            come.setdefault(expert_id, []).append(row.deployment)
    return gone, come

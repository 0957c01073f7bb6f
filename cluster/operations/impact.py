# SPDX-License-Identifier: Apache-2.0
"""What a change would do and what a narrowing did, and the measurements that its quality is judged by.

Reports are made by the office in the background; nobody waits for one. Whoever is not of the platform's staff
sees the lines on their own endpoints, experts and money.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cluster.operations.changes import ChangeId, visible_change
from cluster.operations.epochs import EpochNumber
from cluster.operations.experts import visible_expert
from cluster.operations.scope import cut, cut_lists, sees_everything, tenant_scope
from cluster.operations.table import ANYONE, Answer, Operation, Page, Request
from policy.preview.report import DeploymentImpact, ExpertImpact, ImpactReport
from policy.records.assets import EvaluationRecord
from tenants.roles import Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class ImpactView(Answer):
    """A report, if there is one yet.

    ``pending`` waits for the office; a ``stale`` one was made of another edit or compared with another epoch.
    ``digest`` is that of the whole report, also where the viewer sees a part of it.
    """

    state: Literal["pending", "current", "stale"]
    digest: str | None
    report: ImpactReport | None


class NewEvaluation(Request):
    """A leave-one-out value of an expert, as you measured it."""

    expert_id: str = Field(max_length=60, description="the expert that was left out")
    metric: str = Field(min_length=1, max_length=60, description="what was measured, as bits_per_byte")
    value_micro: int = Field(
        gt=-(2**53),
        lt=2**53,
        description="how much worse it gets without the expert, in millionths of the metric's unit",
    )
    evidence_digest: str = Field(max_length=71, description="digest of whatever shows it")
    deployment: str = Field(default="*", max_length=63, description="where it was measured; * outside any")


class EvaluationQuery(Page):
    """Which measurements."""

    expert_id: str | None = Field(default=None, max_length=60)


class EvaluationPage(Answer):
    """Measurements, newest first."""

    items: tuple[EvaluationRecord, ...]
    next: str | None = None


def of_change(desk: Desk, principal: Principal, request: ChangeId) -> ImpactView:
    """What a change would do."""
    record = visible_change(desk, principal, request.change_id)
    return _view(desk, principal, desk.previews.of_change(record.id))


def of_epoch(desk: Desk, principal: Principal, request: EpochNumber) -> ImpactView:
    """What a publication did."""
    return _view(desk, principal, desk.previews.of_epoch(request.epoch))


def record(desk: Desk, principal: Principal, request: NewEvaluation) -> EvaluationRecord:
    """Takes a measurement of an expert that the caller may know of."""
    return desk.worth.record(
        principal,
        visible_expert(desk, principal, request.expert_id).expert_id,
        request.metric,
        request.value_micro,
        request.evidence_digest,
        request.deployment,
    )


def listed(desk: Desk, principal: Principal, request: EvaluationQuery) -> EvaluationPage:
    """Measurements of one's own experts, and those that one made; staff see all."""
    own = tenant_scope(principal)
    mine = {row.expert_id for row in desk.register.experts(own)}
    rows = [
        row
        for row in desk.worth.evaluations(request.expert_id)
        if own in {None, row.tenant} or row.expert_id in mine
    ]
    items, after = cut(rows, request, lambda row: row.id)
    return EvaluationPage(items=items, next=after)


def _view(desk: Desk, principal: Principal, found: ImpactReport | None) -> ImpactView:
    if found is None:
        return ImpactView(state="pending", digest=None, report=None)
    stale = desk.previews.is_stale(found)
    return ImpactView(
        state="stale" if stale else "current", digest=found.digest, report=_own_part(desk, principal, found)
    )


def _own_part(desk: Desk, principal: Principal, found: ImpactReport) -> ImpactReport:
    if sees_everything(principal):
        return found
    tenant = principal.tenant
    own = frozenset(row.expert_id for row in desk.register.experts(tenant))
    lines = [
        row if row.tenant == tenant else _cut_line(row, own)
        for row in found.deployments
        if row.tenant == tenant or own & {*row.before, *row.after}
    ]
    names = {row.deployment for row in found.deployments if row.tenant == tenant}
    shown = own | {one for row in lines if row.deployment in names for one in (*row.gained, *row.lost)}
    money = [row for row in found.money if tenant in {row.owner, row.consumer}]
    return found.model_copy(
        update={
            "deployments": tuple(lines),
            "consumers": tuple(row for row in found.consumers if row.tenant == tenant),
            "experts": tuple(
                row if row.expert_id in own else _of_own_deployments(row, names)
                for row in found.experts
                if row.expert_id in shown
            ),
            "money": tuple(money),
            "revenue_micro": sum(row.before_micro for row in money),
            "revenue_after_micro": sum(row.after_micro for row in money),
            # How much others ask is theirs to know.
            **dict.fromkeys(("decisions", "decisions_changed", "decisions_stopped", "decisions_begun"), 0),
        }
    )


def _cut_line(row: DeploymentImpact, own: frozenset[str]) -> DeploymentImpact:
    return cut_lists(row, own, "before", "after", "gained", "lost", quality=())


def _of_own_deployments(row: ExpertImpact, names: set[str]) -> ExpertImpact:
    fields = ("deployments_gained", "deployments_lost")
    return cut_lists(row, names, *fields, decisions_gained=0, decisions_lost=0)


ROWS = (
    Operation(
        name="changes.impact",
        method="GET",
        path="/changes/{change_id}/impact",
        roles=ANYONE,
        request=ChangeId,
        response=ImpactView,
        run=of_change,
        summary="Shows what a change does to every logged decision, deployment, quality and revenue.",
        example={"change_id": "chg_0198f0c2a1b37c4e8d5f60718293a4b5"},
    ),
    Operation(
        name="epochs.impact",
        method="GET",
        path="/epochs/{epoch}/impact",
        roles=ANYONE,
        request=EpochNumber,
        response=ImpactView,
        run=of_epoch,
        summary="Shows what a publication that took effect at once did.",
        example={"epoch": 2},
    ),
    Operation(
        name="evaluations.record",
        method="POST",
        path="/evaluations",
        roles=frozenset({Role.OPERATOR, Role.COMPLIANCE, Role.DEVELOPER}),
        request=NewEvaluation,
        response=EvaluationRecord,
        run=record,
        summary="Records what leaving an expert out costs, with the digest of the evidence.",
        example={
            "expert_id": "exp_0198f0c2a1b37c4e8d5f60718293a4b5",
            "metric": "bits_per_byte",
            "value_micro": 12_000,
            "evidence_digest": "sha256:" + "0" * 64,
        },
    ),
    Operation(
        name="evaluations.list",
        method="GET",
        path="/evaluations",
        roles=ANYONE,
        request=EvaluationQuery,
        response=EvaluationPage,
        run=listed,
        summary="Lists measurements of what experts are worth, newest first.",
    ),
)

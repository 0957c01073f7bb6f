# SPDX-License-Identifier: Apache-2.0
"""Deployments: what runs, and why each expert is in or out.

Consumers see the reason for every expert that is offered to them. Experts that are not offered (unlisted,
another owner's) are only counted, and facts about other tenants' consents stay with those tenants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cluster.operations.changes import draft_one
from cluster.operations.jobs import only_base
from cluster.operations.scope import check_visible, cut, sees_everything, unknown
from cluster.operations.table import ANYONE, Answer, Operation, Page, Request
from policy.deciding.composition import Composition
from policy.deciding.decision import Decision, redacted
from policy.records.assets import DeploymentRecord
from policy.records.changes import ChangeRecord
from policy.records.epochs import Publication
from policy.records.items import DeploymentPut
from tenants.roles import Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class PutDeployment(Request):
    """An endpoint of yours, to be approved by compliance."""

    name: str = Field(max_length=63, description="the model name of the OpenAI API")
    base_digest: str | None = Field(
        default=None, max_length=71, description="may be left out if there is exactly one base"
    )
    purpose: str = Field(max_length=100, description="a purpose of the vocabulary")
    region: str = Field(max_length=100, description="a region of the vocabulary")
    commercial: bool = Field(description="whether the use is commercial")
    action: str = Field(default="infer", max_length=60)
    candidates: Literal["*"] | tuple[str, ...] = Field(default="*", description="expert ids, or * for all")
    top_k: int = Field(default=2, ge=1, le=64, description="experts per token, the public one included")
    on_conflict: Literal["strict", "drop_by_rule"] = "strict"
    priority: tuple[str, ...] = Field(default=(), max_length=1000, description="kept first on a conflict")
    when_cut_off: Literal["hold", "refuse"] = Field(
        default="hold", description="open answers that lost the register: wait half a minute, or end at once"
    )
    expected_version: int | None = Field(
        default=None,
        ge=0,
        lt=2**31,
        description="the version that you read, 0 for a new one; may be left out",
    )


class RemoveDeployment(Request):
    """Which deployment, and in which form."""

    name: str = Field(max_length=63)
    expected_version: int | None = Field(
        default=None, ge=0, lt=2**31, description="the version that you read; whichever there is if left out"
    )


class DeploymentName(Request):
    """Which deployment."""

    name: str = Field(max_length=63)


class DeploymentQuery(Page):
    """Which deployments."""

    own: bool = Field(default=False, description="only those of your own tenant")


class DeploymentSummary(Answer):
    """A deployment in a list."""

    name: str
    tenant: str
    base_digest: str
    purpose: str
    region: str
    commercial: bool
    members: tuple[str, ...]
    verdict: str
    composition_digest: str
    epoch: int


class DeploymentView(Answer):
    """A deployment with what it runs now and the reason for every expert that is in or out.

    Attributes:
        hidden_decisions: experts that are out and not for the viewer's eyes.
        version: counts the forms that were published; an edit may name it.
    """

    name: str
    tenant: str
    base_digest: str
    purpose: str
    region: str
    commercial: bool
    action: str
    candidates: Literal["*"] | tuple[str, ...]
    top_k: int
    on_conflict: str
    priority: tuple[str, ...]
    when_cut_off: str = "hold"
    version: int = 0
    composition: Composition
    hidden_decisions: int


class DeploymentPage(Answer):
    """Deployments by name."""

    items: tuple[DeploymentSummary, ...]
    next: str | None = None


def put(desk: Desk, principal: Principal, request: PutDeployment) -> ChangeRecord:
    """Drafts a deployment of one's own tenant."""
    fields = request.model_dump()
    fields["base_digest"] = request.base_digest or only_base(desk)
    item = DeploymentPut(tenant=principal.tenant, **fields)
    return draft_one(desk, principal, f"Deployment {request.name} for {request.purpose}", item)


def listed(desk: Desk, principal: Principal, request: DeploymentQuery) -> DeploymentPage:
    """Deployments of one's own tenant, those that run one's own experts, or all."""
    rows = [
        row
        for row in desk.register.deployments(None)
        if _sees(principal, row) and (not request.own or row.tenant == principal.tenant)
    ]
    items, after = cut(rows, request, lambda row: row.name)
    shown = (_seen_by(desk, principal, row) for row in items)
    return DeploymentPage(items=tuple(_summary(row) for row in shown), next=after)


def show(desk: Desk, principal: Principal, request: DeploymentName) -> DeploymentView:
    """One deployment with its composition."""
    record = desk.register.deployment(request.name)
    if not _sees(principal, record):
        raise unknown("deployment")
    return _seen_by(desk, principal, record)


def remove(desk: Desk, principal: Principal, request: RemoveDeployment) -> Publication:
    """Ends a deployment."""
    record = desk.register.deployment(request.name)
    check_visible(principal, record.tenant, what="deployment")
    return desk.register.remove_deployment(record.name, principal, request.expected_version)


def _seen_by(desk: Desk, principal: Principal, record: DeploymentRecord) -> DeploymentView:
    """A deployment with as much of its composition as the viewer may see."""
    composition, hidden = cut_composition(desk, principal, record.composition)
    fields = record.model_dump(exclude={"composition", "members"})
    return DeploymentView(**fields, composition=composition, hidden_decisions=hidden)


def cut_composition(desk: Desk, principal: Principal, composition: Composition) -> tuple[Composition, int]:
    """A composition without what is not for the viewer's eyes, and how many decisions were left out.

    A consumer sees the members and every listed expert's reasons; an owner who is not the consumer sees
    his own experts alone.
    """
    if sees_everything(principal):
        return composition, 0
    own_deployment = composition.tenant == principal.tenant
    members = {member.bundle_digest for member in composition.members}
    listed_ids = {row.expert_id for row in desk.register.experts(None) if row.state == "listed"}

    def may_see(tenant: str, expert_id: str, digest: str) -> bool:
        if tenant == principal.tenant:
            return True
        return own_deployment and (digest in members or expert_id in listed_ids)

    kept = tuple(
        _without_foreign_facts(principal, one)
        for one in composition.decisions
        if may_see(one.tenant, one.expert_id, one.bundle_digest)
    )
    shown_members = tuple(
        one for one in composition.members if may_see(one.tenant, one.expert_id, one.bundle_digest)
    )
    cut_down = composition.model_copy(update={"decisions": kept, "members": shown_members})
    return cut_down, len(composition.decisions) - len(kept)


def _without_foreign_facts(principal: Principal, decision: Decision) -> Decision:
    if decision.tenant == principal.tenant:
        return decision
    withheld = redacted(decision, principal.tenant)
    if withheld.reasons != decision.reasons:
        decision = withheld  # where nothing was forbidden in private, what would help may be said
    reasons = tuple(one.model_copy(update={"fact_ids": ()}) for one in decision.reasons)
    misses = tuple(one.model_copy(update={"fact_id": None}) for one in decision.nearest_miss)
    return decision.model_copy(update={"reasons": reasons, "nearest_miss": misses})


def _sees(principal: Principal, record: DeploymentRecord) -> bool:
    if sees_everything(principal) or record.tenant == principal.tenant:
        return True
    return any(member.tenant == principal.tenant for member in record.composition.members)


def _summary(view: DeploymentView) -> DeploymentSummary:
    return DeploymentSummary(
        name=view.name,
        tenant=view.tenant,
        base_digest=view.base_digest,
        purpose=view.purpose,
        region=view.region,
        commercial=view.commercial,
        members=tuple(member.name for member in view.composition.members),
        verdict=view.composition.verdict,
        composition_digest=view.composition.digest,
        epoch=view.composition.epoch,
    )


_NAME = {"name": "notes-research"}

ROWS = (
    Operation(
        name="deployments.put",
        method="PUT",
        path="/deployments/{name}",
        roles=frozenset({Role.DEVELOPER}),
        request=PutDeployment,
        response=ChangeRecord,
        run=put,
        summary="Drafts an endpoint for a purpose; compliance approves it.",
        if_match="expected_version",
        example={**_NAME, "purpose": "research", "region": "eu", "commercial": False},
    ),
    Operation(
        name="deployments.list",
        method="GET",
        path="/deployments",
        roles=ANYONE,
        request=DeploymentQuery,
        response=DeploymentPage,
        run=listed,
        summary="Lists your deployments and those that run your experts.",
    ),
    Operation(
        name="deployments.show",
        method="GET",
        path="/deployments/{name}",
        roles=ANYONE,
        request=DeploymentName,
        response=DeploymentView,
        run=show,
        summary="Shows what a deployment runs and the reason for every included and excluded expert.",
        tag="version",
        example=_NAME,
    ),
    Operation(
        name="deployments.remove",
        method="DELETE",
        path="/deployments/{name}",
        roles=frozenset({Role.DEVELOPER, Role.COMPLIANCE, Role.OPERATOR}),
        request=RemoveDeployment,
        response=Publication,
        run=remove,
        summary="Ends a deployment, alone and at once.",
        if_match="expected_version",
        example=_NAME,
    ),
)

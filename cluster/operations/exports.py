# SPDX-License-Identifier: Apache-2.0
"""Taking a composition out as weights: an action of its own, denied unless an owner named it.

Serving and exporting are two questions to the register: what a deployment may run says nothing about what
may leave. No withdrawal recalls a copy, so every export and every bundle of it is decided anew, logged, and
chained into the audit with its recipient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.errors import ExportRefused
from cluster.operations.scope import check_own, unknown
from cluster.operations.table import Answer, Operation, Request
from policy.deciding.composition import Composition, Member, compose
from policy.deciding.decision import redacted
from policy.deciding.questions import Question
from policy.deciding.reasons import Obligation, is_denial
from tenants.roles import Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk

ACTION = "export_weights"


class ExportRequest(Request):
    """What is to leave."""

    name: str = Field(max_length=63, description="the deployment whose composition is exported")
    only_permitted: bool = Field(
        default=False,
        description="leave out experts that may be served but not exported, instead of refusing",
    )
    bundle_digest: str | None = Field(
        default=None, max_length=71, description="one bundle of the export that is about to be fetched"
    )


class ExportedMember(Answer):
    """One expert version that leaves."""

    bundle_digest: str
    expert_id: str
    name: str
    tenant: str
    license: str


class ExportTicket(Answer):
    """What may leave at this moment, for whom, and under which duties.

    Attributes:
        composition_digest: of the base with the members that leave.
        left_out: names of experts that the deployment serves and that may not leave.
        obligations: what the licenses of base and members ask of whoever takes them.
        decision_id: the logged decision that this rests on.
    """

    deployment: str
    tenant: str
    base_digest: str
    composition_digest: str
    top_k: int
    members: tuple[ExportedMember, ...]
    left_out: tuple[str, ...]
    obligations: tuple[Obligation, ...]
    decision_id: str
    epoch: int
    at_us: int


def export(desk: Desk, principal: Principal, request: ExportRequest) -> ExportTicket:
    """Decides whether the composition may leave, and logs it."""
    served = desk.register.deployment(request.name)
    check_own(principal, served.tenant, what="deployment")
    question = Question(at_us=desk.now_us, deployment=request.name, action=ACTION)
    answer = compose(desk.register.snapshot(), question)
    if answer.verdict == "deny":
        raise ExportRefused(
            f"The composition of {request.name} may not leave: {answer.reasons[0].sentence}",
            codes=[one.code for one in answer.reasons],
        )
    leaving = {member.bundle_digest for member in answer.members}
    kept = [member for member in served.composition.members if member.bundle_digest not in leaving]
    if kept and not request.only_permitted:
        raise _may_not_leave(answer, kept[0].bundle_digest, len(kept), principal)
    if request.bundle_digest not in {None, answer.base_digest, *leaving}:
        raise unknown("bundle of this export")
    return ExportTicket(
        deployment=request.name,
        tenant=served.tenant,
        base_digest=answer.base_digest,
        composition_digest=answer.digest,
        top_k=answer.top_k,
        members=tuple(_member(desk, member) for member in answer.members),
        left_out=tuple(f"{member.tenant}/{member.name}" for member in kept),
        obligations=answer.obligations,
        decision_id=desk.register.record_decisions(answer, question),
        epoch=answer.epoch,
        at_us=answer.at_us,
    )


def _member(desk: Desk, member: Member) -> ExportedMember:
    license_ = desk.register.expert(member.expert_id).license
    return ExportedMember.model_validate(member.model_dump() | {"license": license_})


def _may_not_leave(answer: Composition, digest: str, count: int, principal: Principal) -> ExportRefused:
    decision = next(one for one in answer.decisions if one.bundle_digest == digest)
    denials = [one for one in redacted(decision, principal.tenant).reasons if is_denial(one)]
    return ExportRefused(
        f"{count} of the experts that {answer.deployment} serves may not leave as weights, first "
        f"{decision.tenant}/{decision.name}: {denials[0].sentence} Ask the owner for a consent and a "
        f"grant that name {ACTION}, or export what is permitted with only_permitted.",
        expert_id=decision.expert_id,
        codes=[one.code for one in denials],
    )


ROWS = (
    Operation(
        name="deployments.export",
        method="POST",
        path="/deployments/{name}/export",
        roles=frozenset({Role.DEVELOPER}),
        request=ExportRequest,
        response=ExportTicket,
        run=export,
        summary="Decides and logs that your deployment's composition leaves as weights.",
        example={"name": "research-desk"},
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""May these experts answer this, together? Asked, explained, and supposed otherwise.

Nothing here is logged or changed: the answers are those that the epoch in force gives to the question, cut
to what the asker may see. Whoever has no key of the platform's staff asks for their own tenant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from cluster.errors import RoleRequired
from cluster.operations.deployments import DeploymentName, cut_composition, show
from cluster.operations.jobs import only_base
from cluster.operations.scope import check_own, sees_everything, unknown
from cluster.operations.table import ANYONE, Answer, Operation, Request
from model_core.packing.canonical import digest_bytes, digest_of
from policy.deciding.composition import Composition, Member, compose
from policy.deciding.decision import Decision
from policy.deciding.questions import Asked, LicenseChoice, Question, resolve
from policy.deciding.reasons import NearestMiss, Obligation, Reason, is_denial
from policy.facts.snapshot import Snapshot
from policy.preview.supposing import Supposition, suppose
from policy.records.items import ExpertResume, ListingPut
from tenants.roles import Principal

if TYPE_CHECKING:
    from cluster.office.desk import Desk

ExpertName = Annotated[str, Field(min_length=1, max_length=100)]


class UseQuestion(Request):
    """A use: that of a deployment, or one spelled out. What is given beside a deployment wins over it."""

    deployment: str | None = Field(default=None, max_length=63, description="ask as this deployment does")
    tenant: str | None = Field(
        default=None, max_length=63, description="who would use it; your own unless you are the platform's"
    )
    base_digest: str | None = Field(
        default=None, max_length=71, description="may be left out if there is exactly one base"
    )
    action: str | None = Field(default=None, max_length=60, description="`infer` if left out")
    purpose: str | None = Field(default=None, max_length=100, description="a purpose of the vocabulary")
    region: str | None = Field(default=None, max_length=100, description="a region of the vocabulary")
    commercial: bool | None = Field(default=None, description="whether the use is commercial")
    candidates: Literal["*"] | Annotated[tuple[ExpertName, ...], Field(max_length=1000)] | None = Field(
        default=None, description="expert ids or bundle digests, or * for all"
    )
    top_k: int | None = Field(default=None, ge=1, le=64, description="experts per token")
    on_conflict: Literal["strict", "drop_by_rule"] | None = Field(
        default=None, description="what happens where licenses of members clash"
    )
    at_us: int | None = Field(default=None, ge=0, lt=2**53, description="the moment; now if left out")


class SupposedUse(UseQuestion):
    """A use, and what is supposed to be otherwise."""

    suppose: Supposition = Field(description="edits as of a change, prohibitions, and what would be gone")


class ExpertVerdict(Answer):
    """What is said of one expert version; ``codes`` are the reasons' codes, those that deny first."""

    expert_id: str
    bundle_digest: str
    name: str
    tenant: str
    verdict: Literal["permit", "deny"]
    outcome: str
    codes: tuple[str, ...]
    valid_until_us: int | None


class ExpertExplanation(ExpertVerdict):
    """The same with every gate's reason, and for a denial the smallest change that would open each gate."""

    reasons: tuple[Reason, ...]
    nearest_miss: tuple[NearestMiss, ...]
    obligations: tuple[Obligation, ...]
    licenses: tuple[LicenseChoice, ...]


class DecisionDocument(Answer):
    """One answer about a set of experts. Every field keeps its name and meaning.

    Attributes:
        verdict: whether anything may answer at all; a permit without members is the public base alone.
        epoch: what the answer rests on, with ``snapshot_digest``.
        at_us: the moment that was asked about.
        question: the use as it was understood, every field filled in.
        input_digest: of question and snapshot.
        output_digest: of the whole answer, before anything was cut for the viewer: equal answers have
            equal ones whoever asks.
        composition_digest: names what would run.
        dropped: bundles that a conflict of licenses left out.
        reasons: why nothing may answer.
        valid_until_us: the first moment at which a member has to leave.
        hidden_experts: experts that are out and not for the viewer's eyes.
    """

    verdict: Literal["permit", "deny"]
    epoch: int
    at_us: int
    engine_version: str
    question: Asked
    snapshot_digest: str
    input_digest: str
    output_digest: str
    composition_digest: str
    members: tuple[Member, ...]
    dropped: tuple[str, ...]
    top_k: int
    reasons: tuple[Reason, ...]
    obligations: tuple[Obligation, ...]
    valid_until_us: int | None
    experts: tuple[ExpertVerdict, ...]
    hidden_experts: int


class Explanation(DecisionDocument):
    """A decision document with full reasons for every expert that the viewer may see."""

    experts: tuple[ExpertExplanation, ...]


class Simulation(Answer):
    """The answer in force beside the one under what is supposed, and the ids of who would come and go."""

    before: Explanation
    after: Explanation
    gained: tuple[str, ...]
    lost: tuple[str, ...]


def decide(desk: Desk, principal: Principal, request: UseQuestion) -> DecisionDocument:
    """Who may answer, with codes."""
    return DecisionDocument.model_validate(_answer(desk, principal, *_asked(desk, principal, request)))


def explain(desk: Desk, principal: Principal, request: UseQuestion) -> Explanation:
    """Who may answer, with full reasons."""
    return Explanation.model_validate(_answer(desk, principal, *_asked(desk, principal, request)))


def simulate(desk: Desk, principal: Principal, request: SupposedUse) -> Simulation:
    """The same question before and after what is supposed."""
    _check_supposition(desk, principal, request.suppose)
    snapshot, question = _asked(desk, principal, request)
    supposed = suppose(snapshot, request.suppose, tenant=principal.tenant, at_us=question.at_us)
    before = Explanation.model_validate(_answer(desk, principal, snapshot, question))
    after = Explanation.model_validate(_answer(desk, principal, supposed, question))
    was, becomes = ({one.expert_id for one in said.members} for said in (before, after))
    return Simulation(
        before=before,
        after=after,
        gained=tuple(sorted(becomes - was)),
        lost=tuple(sorted(was - becomes)),
    )


def _asked(desk: Desk, principal: Principal, request: UseQuestion) -> tuple[Snapshot, Question]:
    """The facts in force, and the question with what the asker may leave out."""
    epoch = desk.register.current_epoch()
    snapshot = desk.register.known(epoch) if epoch else desk.register.snapshot(None)
    fields = request.model_dump(exclude={"suppose"}, exclude_none=True)
    fields.setdefault("at_us", desk.now_us)
    if request.tenant not in {None, principal.tenant} and not sees_everything(principal):
        raise RoleRequired(
            "Only the platform's staff asks for another tenant. Leave the field tenant out.", field="tenant"
        )
    if request.deployment is not None:
        show(desk, principal, DeploymentName(name=request.deployment))
    else:
        fields.setdefault("tenant", principal.tenant)
        fields.setdefault("base_digest", request.base_digest or only_base(desk))
    return snapshot, Question.model_validate(fields)


def _answer(desk: Desk, principal: Principal, snapshot: Snapshot, question: Question) -> dict[str, Any]:
    """The fields of an explanation, cut to what the viewer may see."""
    asked = resolve(snapshot, question)
    whole = compose(snapshot, question)
    cut_down, hidden = cut_composition(desk, principal, whole)
    seen = {one.bundle_digest for one in cut_down.decisions}
    return {
        **_of(cut_down),
        "question": _shown(principal, asked),
        "composition_digest": whole.digest,
        "input_digest": digest_of(
            {"snapshot": whole.snapshot_digest, "asked": asked.model_dump(mode="json")}
        ),
        "output_digest": digest_bytes(whole.to_json()),
        "dropped": tuple(one for one in whole.dropped if one in seen),
        "experts": tuple(_explained(one) for one in cut_down.decisions),
        "hidden_experts": hidden,
    }


def _of(composition: Composition) -> dict[str, Any]:
    same = DecisionDocument.model_fields.keys() & Composition.model_fields.keys()
    return {name: getattr(composition, name) for name in same}


def _shown(principal: Principal, asked: Asked) -> Asked:
    """The question without what only the deployment's own tenant may know."""
    if sees_everything(principal) or asked.tenant == principal.tenant:
        return asked
    return asked.model_copy(update={"members": None, "priority": ()})


def _explained(decision: Decision) -> ExpertExplanation:
    first = sorted(decision.reasons, key=lambda one: not is_denial(one))
    fields = {name: getattr(decision, name) for name in ExpertExplanation.model_fields if name != "codes"}
    return ExpertExplanation(**fields, codes=tuple(dict.fromkeys(one.code for one in first)))


def _check_supposition(desk: Desk, principal: Principal, supposed: Supposition) -> None:
    """Lets people suppose about what they may see: a supposition must not bring hidden things to light.

    Raises:
        UnknownObject: one of the ids is not there, or not for the asker's eyes.
    """
    if sees_everything(principal):
        return
    own = {row.expert_id for row in desk.register.experts(principal.tenant)}
    for item in supposed.items:
        if isinstance(item, ListingPut | ExpertResume) and item.expert_id not in own:
            raise unknown("expert")
        if item.kind == "deployment.put":
            check_own(principal, item.tenant, what="tenant")
    if not supposed.without:
        return
    seen = own | {row.id for row in desk.register.consents(principal.tenant)}
    seen |= {row.id for row in desk.register.rules()}
    seen |= {
        row.id for row in desk.register.grants(None) if principal.tenant in {row.tenant, row.consumer_tenant}
    }
    if set(supposed.without) - seen:
        raise unknown("fact")


_QUESTION = {"purpose": "research", "region": "eu", "commercial": False}

ROWS = (
    Operation(
        name="compositions.decide",
        method="POST",
        path="/compositions/decide",
        roles=ANYONE,
        request=UseQuestion,
        response=DecisionDocument,
        run=decide,
        summary="Says which experts may answer a use together, with codes and until when.",
        reads=True,
        example=_QUESTION,
    ),
    Operation(
        name="compositions.explain",
        method="POST",
        path="/compositions/explain",
        roles=ANYONE,
        request=UseQuestion,
        response=Explanation,
        run=explain,
        summary="Says the same with every gate's reason, and what would open the gates that are shut.",
        reads=True,
        example=_QUESTION,
    ),
    Operation(
        name="compositions.simulate",
        method="POST",
        path="/compositions/simulate",
        roles=ANYONE,
        request=SupposedUse,
        response=Simulation,
        run=simulate,
        summary="Answers a use as it is and as it would be with some facts supposed; nothing is drafted.",
        reads=True,
        example={
            **_QUESTION,
            "suppose": {"items": [{"kind": "consent.give", "expert_id": "*", "purpose": "research"}]},
        },
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""The past: what the register said at one moment of another, and decisions that late facts would have turned.

Whoever asks sees of the past what they may see of the present: their own words, what was given to them, and
their own deployments; the platform's staff sees everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.operations.deployments import cut_composition
from cluster.operations.scope import check_visible, cut, cut_lists, sees_everything, unknown
from cluster.operations.table import ANYONE, Answer, Operation, Page, Request
from policy.deciding.composition import Composition
from policy.errors import UnknownDeployment
from policy.facts.snapshot import ConsentFact, GrantFact
from policy.publishing.history import AsOf, Correction
from tenants.roles import Principal

if TYPE_CHECKING:
    from cluster.office.desk import Desk

_MOST_WORDS = 500


class AsOfQuery(Request):
    """Two moments, in microseconds since the Unix epoch."""

    valid_us: int | None = Field(
        default=None, ge=0, lt=2**53, description="the moment asked about; now if left out"
    )
    recorded_us: int | None = Field(
        default=None, ge=0, lt=2**53, description="as the register stood then; now if left out"
    )
    deployment: str | None = Field(
        default=None, max_length=63, description="also what this deployment would have run"
    )


class PastAnswer(Answer):
    """What the register said at one moment of another, cut to what the asker may see.

    Attributes:
        epoch: the newest one then.
        complete: False where there were more words than are listed.
    """

    valid_us: int
    recorded_us: int
    epoch: int
    snapshot_digest: str
    published_at_us: int
    consents: tuple[ConsentFact, ...]
    grants: tuple[GrantFact, ...]
    composition: Composition | None = None
    complete: bool = True


class CorrectionQuery(Page):
    """Which epoch's late facts."""

    epoch: int = Field(ge=1, lt=2**31)


class CorrectionPage(Answer):
    """Logged decisions that would have been otherwise; they stay as they are."""

    items: tuple[Correction, ...]
    next: str | None = None


def as_of(desk: Desk, principal: Principal, request: AsOfQuery) -> PastAnswer:
    """What was known then."""
    try:
        found = desk.history.as_of(
            valid_us=desk.now_us if request.valid_us is None else request.valid_us,
            recorded_us=desk.now_us if request.recorded_us is None else request.recorded_us,
            deployment=request.deployment,
        )
    except UnknownDeployment:
        raise unknown("deployment") from None  # as if it were another tenant's
    return _cut(desk, principal, found)


def _cut(desk: Desk, principal: Principal, found: AsOf) -> PastAnswer:
    composition = found.composition
    if composition is not None:
        check_visible(principal, composition.tenant, what="deployment")
        composition, _ = cut_composition(desk, principal, composition)
    everything = sees_everything(principal)
    consents = [one for one in found.consents if everything or one.tenant == principal.tenant]
    grants = [
        one for one in found.grants if everything or principal.tenant in {one.tenant, one.consumer_tenant}
    ]
    return PastAnswer(
        valid_us=found.valid_us,
        recorded_us=found.recorded_us,
        epoch=found.publication.epoch,
        snapshot_digest=found.publication.snapshot_digest,
        published_at_us=found.publication.at_us,
        consents=tuple(consents[:_MOST_WORDS]),
        grants=tuple(grants[:_MOST_WORDS]),
        composition=composition,
        complete=max(len(consents), len(grants)) <= _MOST_WORDS,
    )


def list_corrections(desk: Desk, principal: Principal, request: CorrectionQuery) -> CorrectionPage:
    """Decisions that an epoch's late facts would have turned."""
    rows = desk.history.corrections(request.epoch)
    if not sees_everything(principal):
        own = {row.expert_id for row in desk.register.experts(principal.tenant)}
        rows = [part for row in rows if (part := _own_part(principal, row, own)) is not None]
    items, after = cut(rows, request, lambda row: row.decision_id)
    return CorrectionPage(items=items, next=after)


def _own_part(principal: Principal, row: Correction, own: set[str]) -> Correction | None:
    """A consumer sees its own decisions whole, an owner its experts; neither sees whose word it was."""
    if row.consumer_tenant == principal.tenant:
        return row.model_copy(update={"facts": ()})
    kept = cut_lists(row, own, "gained", "lost", facts=())
    return kept if kept.gained or kept.lost else None


ROWS = (
    Operation(
        name="register.asof",
        method="GET",
        path="/register/asof",
        roles=ANYONE,
        request=AsOfQuery,
        response=PastAnswer,
        run=as_of,
        summary="Says what the register said at one moment of another, and what a deployment would have run.",
        example={"valid_us": 1_800_000_000_000_000, "recorded_us": 1_800_000_000_000_000},
    ),
    Operation(
        name="corrections.list",
        method="GET",
        path="/corrections",
        roles=ANYONE,
        request=CorrectionQuery,
        response=CorrectionPage,
        run=list_corrections,
        summary="Lists logged decisions that facts which an epoch recorded late would have turned.",
        example={"epoch": 1},
    ),
)

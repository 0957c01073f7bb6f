# SPDX-License-Identifier: Apache-2.0
"""Consents and grants: what owners say about the use of their experts.

What widens becomes a change that somebody else approves; what narrows takes effect at once. Which of the
two an act is stands in its row, not in a flag that a caller could set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.operations.changes import draft_one
from cluster.operations.consent_records import write_paper
from cluster.operations.consent_shapes import MAX_US, PERSONAL, Papered
from cluster.operations.scope import cut, sees_everything, tenant_scope
from cluster.operations.table import ANYONE, READERS, Answer, Operation, Page, Request
from policy.facts.snapshot import GrantFact
from policy.records.changes import ChangeRecord
from policy.records.consents import ConsentRecord
from policy.records.epochs import Publication
from policy.records.items import ConsentGive, ForbidUse, GrantGive
from tenants.roles import Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class _Use(Request):
    action: str = Field(default="infer", max_length=60, description="infer, evaluate, … or * for all")
    purpose: str = Field(max_length=100, description="a purpose of the vocabulary; covers those below it")
    region: str = Field(default="*", max_length=100, description="a region of the vocabulary, or * for all")
    valid_from_us: int | None = Field(default=None, ge=0, lt=MAX_US, description="from now on if left out")
    valid_until_us: int | None = Field(default=None, ge=0, lt=MAX_US, description="without end if left out")


class GiveConsent(_Use, Papered):
    """An owner's permission, to be approved by somebody else."""

    expert_id: str = Field(max_length=60, description="one of your experts, or * for all of them")
    recipient: str = Field(default="*", max_length=63, description="a tenant, or * for all")
    commercial: bool = Field(default=False, description="also for commercial use")
    dataset_id: str | None = Field(default=None, max_length=60, description="consent for a dataset instead")
    record_id: str | None = Field(
        default=None, max_length=60, description="the question that this answers (consents.request)"
    )


class ForbidConsent(Request):
    """An owner's prohibition; it takes effect at once."""

    expert_id: str = Field(max_length=60, description="one of your experts, or * for all of them")
    action: str = Field(default="*", max_length=60)
    purpose: str = Field(default="*", max_length=100)
    region: str = Field(default="*", max_length=100)
    recipient: str = Field(default="*", max_length=63)
    commercial: bool = Field(default=False, description="only commercial use")
    valid_from_us: int | None = Field(default=None, ge=0, lt=MAX_US)
    valid_until_us: int | None = Field(default=None, ge=0, lt=MAX_US)
    dataset_id: str | None = Field(default=None, max_length=60)


class ConsentId(Request):
    """Which consent."""

    consent_id: str = Field(max_length=60)


class ConsentPage(Answer):
    """Consents with their history, newest first."""

    items: tuple[ConsentRecord, ...]
    next: str | None = None


class GiveGrant(_Use):
    """One consumer's access to an expert, to be approved by somebody else."""

    expert_id: str = Field(max_length=60)
    consumer_tenant: str = Field(max_length=63, description="a tenant, or * for all")
    action: str = Field(default="*", max_length=60)
    purpose: str = Field(default="*", max_length=100)
    commercial: bool = Field(default=True)


class GrantId(Request):
    """Which grant."""

    grant_id: str = Field(max_length=60)


class GrantPage(Answer):
    """Grants."""

    items: tuple[GrantFact, ...]
    next: str | None = None


def give_consent(desk: Desk, principal: Principal, request: GiveConsent) -> ChangeRecord:
    """Drafts a consent."""
    title = f"Consent: {request.purpose} for {request.expert_id}"
    use = request.model_dump(include=set(ConsentGive.model_fields))
    item = ConsentGive(**use, paper=write_paper(desk, principal, request))
    return draft_one(desk, principal, title, item)


def forbid_consent(desk: Desk, principal: Principal, request: ForbidConsent) -> Publication:
    """Publishes a prohibition."""
    return desk.register.forbid_use(ForbidUse(**request.model_dump()), principal)


def withdraw_consent(desk: Desk, principal: Principal, request: ConsentId) -> Publication:
    """Publishes a withdrawal."""
    return desk.register.withdraw_consent(request.consent_id, principal)


def list_consents(desk: Desk, principal: Principal, request: Page) -> ConsentPage:
    """One's own consents."""
    items, after = cut(desk.register.consents(tenant_scope(principal)), request, lambda row: row.id)
    return ConsentPage(items=items, next=after)


def give_grant(desk: Desk, principal: Principal, request: GiveGrant) -> ChangeRecord:
    """Drafts a grant."""
    title = f"Grant: {request.consumer_tenant} may use {request.expert_id}"
    return draft_one(desk, principal, title, GrantGive(**request.model_dump()))


def revoke_grant(desk: Desk, principal: Principal, request: GrantId) -> Publication:
    """Publishes a revocation."""
    return desk.register.revoke_grant(request.grant_id, principal)


def list_grants(desk: Desk, principal: Principal, request: Page) -> GrantPage:
    """Grants that one gave or received."""
    mine = {principal.tenant, "*"}
    rows = [
        row
        for row in desk.register.grants(None)
        if sees_everything(principal) or row.tenant == principal.tenant or row.consumer_tenant in mine
    ]
    items, after = cut(rows, request, lambda row: row.id)
    return GrantPage(items=items, next=after)


_OWNER = frozenset({Role.OWNER})
_EXPERT_ID = "exp_0198f0c2a1b37c4e8d5f60718293a4b5"

ROWS = (
    Operation(
        name="consents.give",
        method="POST",
        path="/consents",
        roles=_OWNER,
        request=GiveConsent,
        response=ChangeRecord,
        run=give_consent,
        summary="Drafts your permission for a use; somebody else approves it.",
        example={"expert_id": _EXPERT_ID, "purpose": "research", "commercial": False},
        unaudited=PERSONAL,
    ),
    Operation(
        name="consents.forbid",
        method="POST",
        path="/consents/forbid",
        roles=_OWNER,
        request=ForbidConsent,
        response=Publication,
        run=forbid_consent,
        summary="Forbids a use of your experts, alone and at once.",
        example={"expert_id": "*", "purpose": "advertising"},
    ),
    Operation(
        name="consents.withdraw",
        method="POST",
        path="/consents/{consent_id}/withdraw",
        roles=frozenset({Role.OWNER, Role.COMPLIANCE, Role.OPERATOR}),
        request=ConsentId,
        response=Publication,
        run=withdraw_consent,
        summary="Withdraws a consent, alone and at once.",
        example={"consent_id": "cns_0198f0c2a1b37c4e8d5f60718293a4b5"},
    ),
    Operation(
        name="consents.list",
        method="GET",
        path="/consents",
        roles=READERS,
        request=Page,
        response=ConsentPage,
        run=list_consents,
        summary="Lists your consents with their history.",
        isolated=True,
    ),
    Operation(
        name="grants.give",
        method="POST",
        path="/grants",
        roles=_OWNER,
        request=GiveGrant,
        response=ChangeRecord,
        run=give_grant,
        summary="Drafts one consumer's access to your expert; somebody else approves it.",
        example={"expert_id": _EXPERT_ID, "consumer_tenant": "acme-apps"},
    ),
    Operation(
        name="grants.revoke",
        method="POST",
        path="/grants/{grant_id}/revoke",
        roles=frozenset({Role.OWNER, Role.COMPLIANCE, Role.OPERATOR}),
        request=GrantId,
        response=Publication,
        run=revoke_grant,
        summary="Ends a consumer's access, alone and at once.",
        example={"grant_id": "grt_0198f0c2a1b37c4e8d5f60718293a4b5"},
    ),
    Operation(
        name="grants.list",
        method="GET",
        path="/grants",
        roles=ANYONE,
        request=Page,
        response=GrantPage,
        run=list_grants,
        summary="Lists the grants you gave or received.",
        isolated=True,
    ),
)

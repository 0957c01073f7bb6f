# SPDX-License-Identifier: Apache-2.0
"""Listings, licenses and rules: the terms that owners and compliance staff set.

What widens becomes a change that somebody else approves; what narrows takes effect at once. Which of the
two an act is stands in its row, not in a flag that a caller could set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.operations.changes import draft_one
from cluster.operations.scope import check_own, cut
from cluster.operations.table import ANYONE, Answer, Operation, Page, Request
from policy.facts.snapshot import LicenseFact, RuleFact
from policy.records.changes import ChangeRecord
from policy.records.epochs import Publication
from policy.records.items import (
    ForbidRule,
    LicensePut,
    ListingPut,
    RulePermit,
)
from tenants.roles import Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class RuleShape(Request):
    """What a rule speaks of; fields left out mean everything."""

    text: str = Field(min_length=1, max_length=2000, description="the reason, for people")
    action: str = Field(default="*", max_length=60)
    purpose: str = Field(default="*", max_length=100)
    region: str = Field(default="*", max_length=100)
    expert_id: str = Field(default="*", max_length=60)
    consumer_tenant: str = Field(default="*", max_length=63)


class RuleId(Request):
    """Which rule."""

    rule_id: str = Field(max_length=60)


class RulePage(Answer):
    """Rules."""

    items: tuple[RuleFact, ...]
    next: str | None = None


class PutListing(Request):
    """The terms under which an expert is offered."""

    expert_id: str = Field(max_length=60)
    license: str = Field(min_length=1, max_length=1000, description="SPDX expression")
    price_micro_per_1k_tokens: int = Field(
        ge=0, lt=10**12, description="micro-credits per 1000 tokens of this expert"
    )


class Listing(Answer):
    """An offered expert."""

    expert_id: str
    name: str
    tenant: str
    license: str
    price_micro_per_1k_tokens: int


class ListingPage(Answer):
    """What is offered."""

    items: tuple[Listing, ...]
    next: str | None = None


class PutLicense(Request):
    """Reviewed facets of a license; None is unknown and denies where it matters."""

    key: str = Field(min_length=1, max_length=200, description="SPDX id or LicenseRef-…")
    title: str = Field(default="", max_length=500)
    url: str = Field(default="", max_length=1000)
    hosted_use: bool | None = None
    use_commercial: bool | None = None
    derivatives: bool | None = None
    distribution_weights: bool | None = None
    attribution: bool | None = None
    notice: bool = False
    share_alike_group: str | None = Field(default=None, max_length=200)
    prohibited_purposes: tuple[str, ...] = Field(default=(), max_length=100)
    flow_down: tuple[str, ...] = Field(default=(), max_length=100)
    user_cap: int | None = Field(default=None, ge=0, lt=2**31)
    royalty_ppm: int = Field(default=0, ge=0, le=1_000_000)


class LicensePage(Answer):
    """Reviewed licenses by key."""

    items: tuple[LicenseFact, ...]
    next: str | None = None


def permit_rule(desk: Desk, principal: Principal, request: RuleShape) -> ChangeRecord:
    """Drafts a rule that permits."""
    return draft_one(desk, principal, f"Rule: {request.text[:80]}", RulePermit(**request.model_dump()))


def forbid_rule(desk: Desk, principal: Principal, request: RuleShape) -> Publication:
    """Publishes a rule that forbids."""
    return desk.register.add_forbid_rule(ForbidRule(**request.model_dump()), principal)


def remove_rule(desk: Desk, principal: Principal, request: RuleId) -> Publication:
    """Publishes the end of a permitting rule."""
    return desk.register.remove_permit_rule(request.rule_id, principal)


def list_rules(desk: Desk, principal: Principal, request: Page) -> RulePage:
    """Every rule: who is bound by them may read them."""
    del principal
    items, after = cut(desk.register.rules(), request, lambda row: row.id)
    return RulePage(items=items, next=after)


def put_listing(desk: Desk, principal: Principal, request: PutListing) -> ChangeRecord:
    """Drafts an offer."""
    check_own(principal, desk.register.expert(request.expert_id).tenant, what="expert")
    return draft_one(desk, principal, f"Listing of {request.expert_id}", ListingPut(**request.model_dump()))


def list_listings(desk: Desk, principal: Principal, request: Page) -> ListingPage:
    """Every offer."""
    del principal
    rows = [row for row in desk.register.experts(None) if row.state == "listed"]
    items, after = cut(rows, request, lambda row: row.expert_id)
    return ListingPage(items=tuple(Listing.model_validate(row.model_dump()) for row in items), next=after)


def put_license(desk: Desk, principal: Principal, request: PutLicense) -> ChangeRecord:
    """Drafts the facets of a license."""
    fact = LicenseFact(**request.model_dump(), reviewed_by=principal.id)
    return draft_one(desk, principal, f"License {request.key}", LicensePut(fact=fact))


def list_licenses(desk: Desk, principal: Principal, request: Page) -> LicensePage:
    """Every reviewed license."""
    del principal
    items, after = cut(desk.register.licenses(), request, lambda row: row.key)
    return LicensePage(items=items, next=after)


_OWNER = frozenset({Role.OWNER})
_COMPLIANCE = frozenset({Role.COMPLIANCE})
_EXPERT_ID = "exp_0198f0c2a1b37c4e8d5f60718293a4b5"

ROWS = (
    Operation(
        name="listings.put",
        method="PUT",
        path="/listings/{expert_id}",
        roles=_OWNER,
        request=PutListing,
        response=ChangeRecord,
        run=put_listing,
        summary="Drafts the offer of one of your experts under a license at a price.",
        example={"expert_id": _EXPERT_ID, "license": "CC-BY-4.0", "price_micro_per_1k_tokens": 2000},
    ),
    Operation(
        name="listings.list",
        method="GET",
        path="/listings",
        roles=ANYONE,
        request=Page,
        response=ListingPage,
        run=list_listings,
        summary="Lists what is offered, with terms and price.",
    ),
    Operation(
        name="licenses.put",
        method="PUT",
        path="/licenses/{key}",
        roles=_COMPLIANCE,
        request=PutLicense,
        response=ChangeRecord,
        run=put_license,
        summary="Drafts the reviewed facets of a license.",
        example={"key": "LicenseRef-notes", "hosted_use": True, "use_commercial": False, "derivatives": True},
    ),
    Operation(
        name="licenses.list",
        method="GET",
        path="/licenses",
        roles=ANYONE,
        request=Page,
        response=LicensePage,
        run=list_licenses,
        summary="Lists the licenses that were reviewed, with their facets.",
    ),
    Operation(
        name="rules.permit",
        method="POST",
        path="/rules",
        roles=_COMPLIANCE,
        request=RuleShape,
        response=ChangeRecord,
        run=permit_rule,
        summary="Drafts a rule that permits; somebody else approves it.",
        example={"text": "Research in the EU is in scope.", "purpose": "research", "region": "eu"},
    ),
    Operation(
        name="rules.forbid",
        method="POST",
        path="/rules/forbid",
        roles=_COMPLIANCE,
        request=RuleShape,
        response=Publication,
        run=forbid_rule,
        summary="Publishes a rule that forbids, alone and at once.",
        example={"text": "No advertising with medical experts.", "purpose": "advertising"},
    ),
    Operation(
        name="rules.remove",
        method="POST",
        path="/rules/{rule_id}/remove",
        roles=_COMPLIANCE,
        request=RuleId,
        response=Publication,
        run=remove_rule,
        summary="Takes back a rule that permits, alone and at once.",
        example={"rule_id": "rul_0198f0c2a1b37c4e8d5f60718293a4b5"},
    ),
    Operation(
        name="rules.list",
        method="GET",
        path="/rules",
        roles=ANYONE,
        request=Page,
        response=RulePage,
        run=list_rules,
        summary="Lists the rules of compliance.",
    ),
)

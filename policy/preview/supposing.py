# SPDX-License-Identifier: Apache-2.0
"""What if? A snapshot with some facts supposed, made by a pure function; nothing is drafted or published.

An edit of a change becomes the fact that publishing it would write; what would be forbidden, withdrawn or
suspended is supposed the same way. Where anything is supposed that widens, deployments are taken as reviewed
anew, as a publication of it would. It does not know who may suppose what, nor whether a register would take
the edits; and of a suspended expert not whether it was ever offered, so resuming it supposes that it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from policy.facts.snapshot import ConsentFact, DeploymentFact, ExpertFact, GrantFact, RuleFact, Snapshot
from policy.facts.terms import ANY
from policy.records.items import (
    ChangeItem,
    ConsentGive,
    ConsentRenew,
    DeploymentPut,
    ExpertResume,
    ForbidRule,
    ForbidUse,
    GrantGive,
    LicensePut,
    ListingPut,
    RuleLift,
    RulePermit,
    TenantResume,
)

MAX_SUPPOSED = 50

Id = Annotated[str, Field(min_length=1, max_length=100)]


class Supposition(BaseModel):
    """What is supposed on top of an epoch.

    Attributes:
        items: edits of a change, as if it were published now.
        forbidden_uses: prohibitions of owners.
        forbidding_rules: prohibitions of compliance.
        without: ids of consents, grants and rules that are supposed to be gone, and of experts that are
            supposed to be suspended.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: tuple[ChangeItem, ...] = Field(default=(), max_length=MAX_SUPPOSED)
    forbidden_uses: tuple[ForbidUse, ...] = Field(default=(), max_length=MAX_SUPPOSED)
    forbidding_rules: tuple[ForbidRule, ...] = Field(default=(), max_length=MAX_SUPPOSED)
    without: tuple[Id, ...] = Field(default=(), max_length=MAX_SUPPOSED)


def suppose(snapshot: Snapshot, supposition: Supposition, *, tenant: str, at_us: int) -> Snapshot:
    """The snapshot as it would be.

    Args:
        snapshot: the facts.
        supposition: what is changed in them.
        tenant: whose word an edit is that names no single expert or dataset.
        at_us: when what is supposed begins, where it does not say so itself.
    """
    experts = {fact.bundle_digest: fact for fact in snapshot.experts}
    lists: dict[str, list[Any]] = {
        kind: [fact for fact in getattr(snapshot, kind) if fact.id not in supposition.without]
        for kind in ("consents", "grants", "rules")
    }
    kept: dict[str, dict[str, Any]] = {
        "tenants": {fact.slug: fact for fact in snapshot.tenants},
        "licenses": {fact.key.lower(): fact for fact in snapshot.licenses},
        "deployments": {fact.name: fact for fact in snapshot.deployments},
        "experts": experts,
    }
    if supposition.items:
        for name, fact in kept["deployments"].items():
            kept["deployments"][name] = fact.model_copy(update={"members": None})
    numbered = enumerate((*supposition.items, *supposition.forbidden_uses, *supposition.forbidding_rules))
    for number, item in numbered:
        _put(item, f"supposed:{number}", lists, kept, tenant, at_us)
    for fact in list(experts.values()):
        if fact.expert_id in supposition.without:
            experts[fact.bundle_digest] = fact.model_copy(update={"state": "suspended"})
    joined = {kind: tuple(facts.values()) for kind, facts in kept.items()}
    return snapshot.model_copy(update={**joined, **{kind: tuple(facts) for kind, facts in lists.items()}})


def _put(
    item: ChangeItem | ForbidUse | ForbidRule,
    fact_id: str,
    lists: dict[str, list[Any]],
    kept: dict[str, dict[str, Any]],
    tenant: str,
    at_us: int,
) -> None:
    match item:
        case ConsentGive():
            owner = _owner(item.expert_id, item.dataset_id, kept, tenant)
            lists["consents"].append(_consent(item, fact_id, "permit", owner, at_us))
        case ConsentRenew():
            lists["consents"][:] = _renewed(lists["consents"], item, fact_id, at_us)
        case ForbidUse():
            owner = _owner(item.expert_id, item.dataset_id, kept, tenant)
            lists["consents"].append(_consent(item, fact_id, "forbid", owner, at_us))
        case GrantGive():
            owner = _owner(item.expert_id, None, kept, tenant)
            fields = _from(item, at_us)
            lists["grants"].append(GrantFact(**fields, id=fact_id, tenant=owner))
        case RulePermit() | ForbidRule():
            effect: Literal["permit", "forbid"] = "permit" if isinstance(item, RulePermit) else "forbid"
            lists["rules"].append(RuleFact(**item.model_dump(exclude={"kind"}), id=fact_id, effect=effect))
        case RuleLift():
            lists["rules"][:] = [
                one for one in lists["rules"] if one.id != item.rule_id or one.effect != "forbid"
            ]
        case ListingPut():
            _alter(
                kept,
                item.expert_id,
                lambda _: {
                    "state": "listed",
                    "license": item.license,
                    "price_micro_per_1k_tokens": item.price_micro_per_1k_tokens,
                },
            )
        case ExpertResume():
            _alter(kept, item.expert_id, lambda f: {"state": "listed"} if f.state == "suspended" else {})
        case TenantResume():
            if item.slug in kept["tenants"]:
                fact = kept["tenants"][item.slug]
                kept["tenants"][item.slug] = fact.model_copy(update={"status": "active"})
        case DeploymentPut():
            fields = item.model_dump(exclude={"kind"})
            kept["deployments"][item.name] = DeploymentFact.model_validate(fields)
        case LicensePut():
            kept["licenses"][item.fact.key.lower()] = item.fact


def _alter(
    kept: dict[str, dict[str, Any]], expert_id: str, change: Callable[[ExpertFact], dict[str, Any]]
) -> None:
    for digest, fact in kept["experts"].items():
        if fact.expert_id == expert_id:
            kept["experts"][digest] = fact.model_copy(update=change(fact))


def _from(item: ConsentGive | ForbidUse | GrantGive, at_us: int) -> dict[str, Any]:
    fields: dict[str, Any] = item.model_dump(exclude={"kind"})
    if fields["valid_from_us"] is None:
        fields["valid_from_us"] = at_us
    return fields


def _consent(
    item: ConsentGive | ForbidUse,
    fact_id: str,
    effect: Literal["permit", "forbid"],
    owner: str,
    at_us: int,
) -> ConsentFact:
    return ConsentFact(**_from(item, at_us), id=fact_id, tenant=owner, effect=effect)


def _renewed(facts: list[Any], item: ConsentRenew, fact_id: str, at_us: int) -> list[Any]:
    """The consents with one that goes on for longer; without change where there is no such consent."""
    start_us = max(at_us, item.valid_from_us or at_us)
    found = []
    for fact in facts:
        if fact.id != item.consent_id:
            found.append(fact)
            continue
        if fact.valid_until_us is not None and fact.valid_until_us <= start_us:
            found.append(fact)
        # Else it ends as the new one begins, and a word that a later one replaced is no fact any more.
        new = {"id": fact_id, "valid_from_us": start_us, "valid_until_us": item.valid_until_us}
        found.append(fact.model_copy(update=new))
    return found


def _owner(expert_id: str, dataset_id: str | None, kept: dict[str, dict[str, Any]], tenant: str) -> str:
    """Whose word it would be: the dataset's owner, else the expert's, else the one who supposes."""
    experts: Sequence[ExpertFact] = list(kept["experts"].values())
    if dataset_id is not None:
        owners = [one.tenant for fact in experts for one in fact.datasets if one.id == dataset_id]
    elif expert_id != ANY:
        owners = [fact.tenant for fact in experts if expert_id in (fact.expert_id, fact.bundle_digest)]
    else:
        owners = []
    return str(owners[0]) if owners else tenant

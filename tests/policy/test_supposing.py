# SPDX-License-Identifier: Apache-2.0
"""What is supposed is what publishing it would say, and the snapshot it is supposed on stays as it was."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from policy.deciding.composition import compose
from policy.deciding.questions import Question
from policy.facts.kinds import KINDS
from policy.facts.snapshot import Snapshot
from policy.preview.supposing import Supposition, suppose
from policy.records.assets import ExpertRecord
from policy.records.items import (
    ChangeItem,
    ConsentRenew,
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
from tests.policy.town import Town, consent, deployment


def _says(snapshot: Snapshot, at_us: int) -> tuple[set[str], list[tuple[str, str]]]:
    """Members, and verdict and outcome of every expert, of the shop's endpoint."""
    said = compose(snapshot, Question(at_us=at_us, deployment="shop-ask"))
    return {one.expert_id for one in said.members}, [(one.verdict, one.outcome) for one in said.decisions]


@pytest.fixture
def town(database: Any) -> Town:
    """People, and no expert yet."""
    return Town(database)


def _opening(town: Town, expert: ExpertRecord) -> list[tuple[Any, ChangeItem]]:
    """What opens the shop's endpoint for an expert, with the people who draft it."""
    return [
        (town.ada, ListingPut(expert_id=expert.expert_id, price_micro_per_1k_tokens=5, license="MIT")),
        (town.ada, consent(expert)),
        (town.ada, GrantGive(expert_id=expert.expert_id, consumer_tenant="shop")),
        (town.carl, RulePermit(text="everything")),
        (town.dora, deployment(town.base)),
    ]


def test_what_is_supposed_is_what_publishing_says(town: Town) -> None:
    """Edits supposed at once on the first epoch answer as after each of them was published."""
    expert = town.expert()
    town.widen(town.carl, town.cleo, RulePermit(text="to begin with", purpose="sales"))
    first = town.act(lambda register: register.snapshot(None))
    digest = first.digest
    edits = _opening(town, expert)
    supposed = suppose(
        first, Supposition(items=tuple(item for _, item in edits)), tenant="shop", at_us=town.now
    )
    for author, item in edits:
        town.widen(author, town.cleo, item)
    published = town.act(lambda register: register.snapshot(None))
    assert (
        _says(supposed, town.now)
        == _says(published, town.now)
        == ({expert.expert_id}, [("permit", "permit")])
    )
    assert first.digest == digest
    assert not first.deployments


def _facts(snapshot: Snapshot) -> dict[str, list[str]]:
    """Every fact as text, without what only a publication can give it: ids, versions and members."""
    unknown = {"consents": {"id"}, "grants": {"id"}, "rules": {"id"}}
    unknown |= {"licenses": {"version"}, "deployments": {"members"}}
    return {
        kind: sorted(fact.model_dump_json(exclude=unknown.get(kind)) for fact in getattr(snapshot, kind))
        for kind in KINDS
    }


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_every_kind_of_edit_is_supposed_as_it_is_written(town: Town) -> None:
    """One after the other, an edit of each kind supposes the very facts that publishing it leaves."""
    first, second = town.expert(), town.expert("beta", "numbers")
    town.open_all(first, second)
    ends = consent(first, purpose="medical", valid_until_us=town.now + 10**12)
    town.widen(town.ada, town.alan, ends)
    rule = ForbidRule(text="no", purpose="sales")
    town.act(lambda register: register.add_forbid_rule(rule, town.carl))
    town.act(lambda register: register.suspend_expert(second.expert_id, town.bob))
    town.act(lambda register: register.suspend_tenant("club", town.olga))
    now = town.act(lambda register: register.snapshot(None))
    terms = now.licenses_by_key["mit"].model_copy(update={"attribution": True, "reviewed_by": "cleo"})
    ending = next(fact.id for fact in now.consents if fact.valid_until_us is not None)
    forbidding = next(fact.id for fact in now.rules if fact.effect == "forbid")
    edits: list[tuple[Any, ChangeItem]] = [
        (town.ada, consent(first, purpose="education", commercial=True)),
        (town.ada, ConsentRenew(consent_id=ending, valid_until_us=town.now + 10**13)),
        (town.ada, GrantGive(expert_id=first.expert_id, consumer_tenant="club", purpose="education")),
        (town.carl, RulePermit(text="schools", purpose="education")),
        (town.ada, ListingPut(expert_id=first.expert_id, price_micro_per_1k_tokens=7, license="Apache-2.0")),
        (town.bob, ExpertResume(expert_id=second.expert_id)),
        (town.olga, TenantResume(slug="club")),
        (town.dora, deployment(town.base, purpose="education")),
        (town.carl, LicensePut(fact=terms)),
        (town.carl, RuleLift(rule_id=forbidding)),
    ]
    assert {type(item) for _, item in edits} == set(get_args(get_args(ChangeItem)[0]))
    for author, item in edits:
        before = town.act(lambda register: register.snapshot(None))
        published = town.widen(author, town.cleo, item)
        after = town.act(lambda register: register.snapshot(None))
        supposition = Supposition(items=(item,))
        supposed = suppose(before, supposition, tenant=author.tenant, at_us=published.at_us)
        assert _facts(supposed) == _facts(after) != _facts(before), item.kind


@pytest.mark.parametrize("kind", ["consent", "grant", "expert", "forbid", "rule"])
def test_narrowings_are_supposed_as_they_are_published(town: Town, kind: str) -> None:
    """Withdrawing, revoking, suspending and forbidding give the same outcome supposed and done."""
    expert = town.expert()
    town.open_all(expert)
    before = town.act(lambda register: register.snapshot(None))
    use = ForbidUse(expert_id=expert.expert_id, purpose="research")
    rule = ForbidRule(text="no", region="eu")
    supposed, act = {
        "consent": (
            Supposition(without=(before.consents[0].id,)),
            lambda register: register.withdraw_consent(before.consents[0].id, town.ada),
        ),
        "grant": (
            Supposition(without=(before.grants[0].id,)),
            lambda register: register.revoke_grant(before.grants[0].id, town.ada),
        ),
        "expert": (
            Supposition(without=(expert.expert_id,)),
            lambda register: register.suspend_expert(expert.expert_id, town.ada),
        ),
        "forbid": (
            Supposition(forbidden_uses=(use,)),
            lambda register: register.forbid_use(use, town.ada),
        ),
        "rule": (
            Supposition(forbidding_rules=(rule,)),
            lambda register: register.add_forbid_rule(rule, town.carl),
        ),
    }[kind]
    town.act(act)
    after = town.act(lambda register: register.snapshot(None))
    at_us = town.now + 1
    guessed = _says(suppose(before, supposed, tenant="acme", at_us=town.now), at_us)
    assert guessed == _says(after, at_us)
    assert guessed[0] == set()


def test_supposed_license_terms_count(town: Town) -> None:
    """Terms of a license that are supposed otherwise shut the gate that reads them."""
    town.open_all(town.expert())
    snapshot = town.act(lambda register: register.snapshot(None))
    fact = snapshot.licenses_by_key["mit"].model_copy(update={"hosted_use": False})
    supposed = suppose(
        snapshot, Supposition(items=(LicensePut(fact=fact),)), tenant="platform", at_us=town.now
    )
    assert _says(supposed, town.now) == (set(), [("deny", "license")])


def test_what_is_narrowed_lets_nobody_new_in(town: Town) -> None:
    """Between reviews members may only leave: a supposed withdrawal frees no place for another expert."""
    held = town.expert()
    town.open_all(held)
    snapshot = town.act(lambda register: register.snapshot(None))
    alone = snapshot.model_copy(
        update={
            "deployments": tuple(fact.model_copy(update={"members": ()}) for fact in snapshot.deployments)
        }
    )
    narrowed = suppose(
        alone, Supposition(forbidding_rules=(ForbidRule(text="x", region="us"),)), tenant="shop", at_us=0
    )
    assert _says(narrowed, town.now) == (set(), [("deny", "awaits_review")])
    widened = suppose(alone, Supposition(items=(RulePermit(text="x"),)), tenant="shop", at_us=0)
    assert _says(widened, town.now)[0] == {held.expert_id}

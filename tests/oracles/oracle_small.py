# SPDX-License-Identifier: Apache-2.0
"""Small worlds, all of them: every combination of the axes below, in four families.

Two tenants (the owner ``anna``, the consumer ``app``), two experts, three purposes (``research`` with
``medical-research`` and ``legal-research`` below it), two regions (``eu``, ``de`` within it), three moments.
An interval is any of the six that begin at a moment and end at a later one or never.

- ``consents``: exp_1 has one permit (3 purposes, 2 regions, 6 intervals); a second word is missing or is a
  permit or a prohibition (3 purposes, 2 regions, 6 intervals). Asked: 3 purposes, 2 regions, 3 moments.
- ``access``: no grant or one (3 purposes, 2 regions, to anybody or to the consumer, 6 intervals); a
  permitting rule (3 purposes, 2 regions); no second rule or a forbidding one (3 purposes, 2 regions, about
  anybody or exp_2). Asked: 3 purposes, 2 regions, 3 moments.
- ``terms``: two experts, each under one of 6 licenses, on a base under one of 3, trained on the same dataset
  or on two; strict or by rule; 3 priorities; inference or export; commercial or not; 5 reviewed sets.
- ``standing``: owner, consumer and base active, suspended or unknown; each expert listed, sealed, suspended
  or erased; the second on this base or another; 4 ways to name candidates.

Knows how worlds are made, not what is true in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from oracle_compare import Asked
from worlds import (
    BASE,
    LICENSES,
    bundle,
    consent,
    dataset,
    deployment,
    expert,
    grant,
    rule,
    world,
)

from policy.deciding.questions import Question
from policy.facts.snapshot import BaseFact, TenantFact

PURPOSES = ("research", "medical-research", "legal-research")
REGIONS = ("eu", "de")
MOMENTS = (0, 1, 2)
INTERVALS = tuple(
    {"valid_from_us": begin, "valid_until_us": end}
    for begin in MOMENTS
    for end in (*MOMENTS, None)
    if end is None or end > begin
)
_SCOPES = tuple({"purpose": purpose, "region": region} for purpose, region in product(PURPOSES, REGIONS))
_TWO = tuple(TenantFact(slug=slug, status="active") for slug in ("anna", "app"))
_FREE = tuple(fact for fact in LICENSES if fact.key in ("MIT", "CC0-1.0"))
_BOTH = (expert(1), expert(2))


def consents() -> Iterator[Asked]:
    """One permit, and perhaps a second word."""
    seconds: list[dict[str, Any] | None] = [None]
    seconds += [
        {"effect": effect, **scope, **when}
        for effect, scope, when in product(("permit", "forbid"), _SCOPES, INTERVALS)
    ]
    everything = {"rules": (rule(),), "grants": (grant(1), grant(2)), "experts": _BOTH}
    for number, (scope, when, second) in enumerate(product(_SCOPES, INTERVALS, seconds)):
        words = [consent(1, **scope, **when), consent(2)]
        if second is not None:
            words.append(consent(3, expert_id="exp_1", **second))
        yield from _at_all_moments(f"consents-{number}", consents=tuple(words), **everything)


def access() -> Iterator[Asked]:
    """A grant or none, a permitting rule, and a forbidding one or none."""
    grants = [
        (),
        *(
            (grant(1, expert_id="*", consumer_tenant=to, **scope, **when),)
            for to, scope, when in product(("*", "app"), _SCOPES, INTERVALS)
        ),
    ]
    forbids = [
        (),
        *(
            (rule(2, effect="forbid", expert_id=about, **scope),)
            for about, scope in product(("*", "exp_2"), _SCOPES)
        ),
    ]
    for number, (given, scope, forbidden) in enumerate(product(grants, _SCOPES, forbids)):
        facts = {"grants": given, "rules": (rule(1, **scope), *forbidden)}
        yield from _at_all_moments(
            f"access-{number}", experts=_BOTH, consents=(consent(1), consent(2)), **facts
        )


def terms() -> Iterator[Asked]:
    """Two experts and a base whose licenses may clash."""
    keys = ("MIT", "CC-BY-SA-4.0", "CC-BY-NC-SA-4.0", "LicenseRef-70", "LicenseRef-40", "NOASSERTION")
    axes = product(
        *(keys, keys, ("CC0-1.0", "LicenseRef-40", "CC-BY-SA-4.0"), (True, False)),
        *(("strict", "drop_by_rule"), ((), ("exp_2",), ("exp_2", "exp_1")), ("infer", "export_weights")),
        *((True, False), (None, (), (bundle(1),), (bundle(2),), (bundle(1), bundle(2)))),
    )
    for number, (one, other, ground, same, settle, order, action, commercial, members) in enumerate(axes):
        second = dataset(1 if same else 2, license="LicenseRef-40" if same else "CC0-1.0")
        first = dataset(1, license=second.license)
        yield Asked(
            f"terms-{number}",
            world(
                tenants=_TWO,
                experts=(
                    expert(1, license=one, datasets=(first,)),
                    expert(2, license=other, datasets=(second,)),
                ),
                bases=(BaseFact(base_digest=BASE, name="public", license=ground),),
                licenses=tuple(fact for fact in LICENSES if fact.key in (one, other, ground, second.license)),
                consents=(consent(1, action=action), consent(2, action=action)),
                grants=(grant(1, action=action), grant(2, action=action)),
                rules=(rule(action=action),),
                deployments=(
                    deployment(
                        action=action,
                        commercial=commercial,
                        on_conflict=settle,
                        priority=order,
                        members=members,
                    ),
                ),
            ),
            Question(deployment="lab", at_us=1),
        )


def standing() -> Iterator[Asked]:
    """Who may act at all, and who is a candidate."""
    stands = ("active", "suspended", None)
    states = ("listed", "sealed", "suspended", "erased")
    names = ("*", ("exp_1",), (bundle(2), "exp_9"), ())
    axes = product(stands, stands, stands, states, states, (BASE, bundle(77)), names)
    for number, (owner, consumer, base, one, other, below, named) in enumerate(axes):
        slugs = {"anna": owner, "app": consumer}
        yield Asked(
            f"standing-{number}",
            world(
                tenants=tuple(TenantFact(slug=slug, status=how) for slug, how in slugs.items() if how),
                bases=tuple(
                    BaseFact(base_digest=BASE, name="b", license="MIT", status=how) for how in (base,) if how
                ),
                licenses=_FREE,
                experts=(expert(1, state=one), expert(2, state=other, base_digest=below)),
                consents=(consent(1), consent(2)),
                grants=(grant(1), grant(2)),
                deployments=(deployment(candidates=named),),
            ),
            Question(deployment="lab", at_us=1),
        )


FAMILIES = {"consents": consents, "access": access, "terms": terms, "standing": standing}


def _at_all_moments(name: str, **facts: Any) -> Iterator[Asked]:
    snapshot = world(tenants=_TWO, licenses=_FREE, **facts)
    for place, (scope, at_us) in enumerate(product(_SCOPES, MOMENTS)):
        asked = snapshot.model_copy(update={"deployments": (deployment(**scope),)})
        yield Asked(f"{name}-{place}", asked, Question(deployment="lab", at_us=at_us))

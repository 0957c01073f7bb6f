# SPDX-License-Identifier: Apache-2.0
"""Worlds for the tests of policy: one in which everything holds, and seeded random ones.

The random generator starts from a world in which everything holds and breaks a few things, so that
permits stay frequent and every gate is now and then the only one that denies.
"""

from __future__ import annotations

import random
from typing import Any

from policy.composition import Question
from policy.snapshot import (
    BaseFact,
    ConsentFact,
    DatasetFact,
    DeploymentFact,
    ExpertFact,
    GrantFact,
    LicenseFact,
    RuleFact,
    Snapshot,
    TenantFact,
)

NOW_US = 1_000_000
BASE = "sha256:" + "b" * 64


def bundle(number: int) -> str:
    """A bundle digest."""
    return f"sha256:{number:064x}"


def license_fact(key: str, **facets: Any) -> LicenseFact:
    """A reviewed license that permits everything and asks for nothing, but for the given facets."""
    fields: dict[str, Any] = {
        "key": key,
        "hosted_use": True,
        "use_commercial": True,
        "derivatives": True,
        "distribution_weights": True,
        "attribution": False,
        "reviewed_by": "counsel",
    }
    return LicenseFact(**{**fields, **facets})


LICENSES = (
    license_fact("MIT", attribution=True),
    license_fact("CC0-1.0"),
    license_fact("CC-BY-4.0", attribution=True, notice=True),
    license_fact("CC-BY-NC-4.0", attribution=True, use_commercial=False),
    license_fact("CC-BY-SA-4.0", attribution=True, share_alike_group="CC-BY-SA-4.0"),
    license_fact(
        "CC-BY-NC-SA-4.0", attribution=True, use_commercial=False, share_alike_group="CC-BY-NC-SA-4.0"
    ),
    license_fact(
        "LicenseRef-rail", prohibited_purposes=("medical-advice",), flow_down=("no medical advice",)
    ),
    license_fact("LicenseRef-70", royalty_ppm=700_000),
    license_fact("LicenseRef-40", royalty_ppm=400_000),
    license_fact("LicenseRef-unsure", hosted_use=None),
    license_fact("LicenseRef-unread", reviewed_by=""),
    license_fact("LicenseRef-badterm", prohibited_purposes=("gibberish",)),
)


def dataset(number: int = 1, **fields: Any) -> DatasetFact:
    """Dataset ds_<number> of the expert's owner."""
    return DatasetFact(**{"id": f"ds_{number}", "tenant": "anna", "license": "CC0-1.0", **fields})


def expert(number: int = 1, **fields: Any) -> ExpertFact:
    """Expert exp_<number> of tenant anna."""
    stated = {
        "bundle_digest": bundle(number),
        "expert_id": f"exp_{number}",
        "name": f"expert-{number}",
        "tenant": "anna",
        "base_digest": BASE,
        "license": "MIT",
        "datasets": (dataset(number),),
        "state": "listed",
        "price_micro_per_1k_tokens": 1_000,
    }
    return ExpertFact(**{**stated, **fields})


def consent(number: int = 1, **fields: Any) -> ConsentFact:
    """Consent of anna to infer with exp_<number> for research and commerce, everywhere, always."""
    stated = {
        "id": f"con_{number}",
        "expert_id": f"exp_{number}",
        "tenant": "anna",
        "effect": "permit",
        "action": "infer",
        "purpose": "any",
        "region": "global",
        "commercial": True,
        "valid_from_us": 0,
    }
    return ConsentFact(**{**stated, **fields})


def grant(number: int = 1, **fields: Any) -> GrantFact:
    """A grant of anna for exp_<number> to tenant app."""
    stated = {
        "id": f"gra_{number}",
        "expert_id": f"exp_{number}",
        "tenant": "anna",
        "consumer_tenant": "app",
        "valid_from_us": 0,
    }
    return GrantFact(**{**stated, **fields})


def rule(number: int = 1, **fields: Any) -> RuleFact:
    """A rule that permits everything."""
    return RuleFact(**{"id": f"rul_{number}", "effect": "permit", **fields})


def deployment(**fields: Any) -> DeploymentFact:
    """The deployment lab: research in the EU by tenant app, not commercial."""
    stated = {
        "name": "lab",
        "tenant": "app",
        "base_digest": BASE,
        "purpose": "research",
        "region": "eu",
        "commercial": False,
        "top_k": 2,
    }
    return DeploymentFact(**{**stated, **fields})


def world(**fields: Any) -> Snapshot:
    """A world in which expert exp_1 is permitted for the deployment lab; fields replace whole kinds."""
    stated: dict[str, Any] = {
        "epoch": 7,
        "published_at_us": 1,
        "vocabulary_version": "1",
        "tenants": tuple(TenantFact(slug=slug, status="active") for slug in ("anna", "ben", "app", "bank")),
        "bases": (BaseFact(base_digest=BASE, name="public", license="CC0-1.0"),),
        "licenses": LICENSES,
        "experts": (expert(),),
        "consents": (consent(),),
        "grants": (grant(),),
        "rules": (rule(),),
        "deployments": (deployment(),),
    }
    return Snapshot(**{**stated, **fields})


def ask(at_us: int = NOW_US, **fields: Any) -> Question:
    """What the deployment lab asks now."""
    return Question(**{"deployment": "lab", "at_us": at_us, **fields})


PURPOSES = ("research", "medical-research", "cancer-research", "military-research", "commercial", "any")
REGIONS = ("global", "eu", "de", "us")
TIMES = (0, NOW_US - 1, NOW_US, NOW_US + 1, NOW_US + 500, NOW_US + 1_000)
OWNERS = ("anna", "ben")
CONSUMERS = ("app", "bank")


def random_world(seed: int) -> tuple[Snapshot, Question]:
    """A world of up to three experts and a question about it, both made by the seed alone."""
    dice = random.Random(seed)
    if dice.random() < 0.1:
        return _quarrel(dice), ask()
    count = dice.randint(1, 3)
    experts, consents, grants = [], [], []
    for number in range(1, count + 1):
        owner = dice.choice(OWNERS)
        experts.append(_random_expert(dice, number, owner))
        consents.append(consent(number, tenant=owner, **_maybe_narrower(dice)))
        grants.append(grant(number, tenant=owner, consumer_tenant=dice.choice(("*", "app"))))
    world_fields: dict[str, Any] = {
        "experts": experts,
        "consents": consents
        + [_random_consent(dice, i) for i in range(10, 10 + dice.choice((0, 0, 0, 1, 2, 3)))],
        "grants": grants + [_random_grant(dice, i) for i in range(10, 10 + dice.choice((0, 1, 2)))],
        "rules": [
            rule(),
            *(_random_rule(dice, i) for i in range(10, 10 + dice.choice((0, 0, 0, 0, 0, 1, 2)))),
        ],
        "deployments": [
            deployment(
                purpose=dice.choice(PURPOSES[:5]),
                region=dice.choice(REGIONS),
                commercial=dice.random() < 0.3,
                action=dice.choice(("infer",) * 8 + ("evaluate", "export_weights")),
                top_k=dice.randint(1, 5),
                on_conflict=dice.choice(("strict", "drop_by_rule")),
                candidates=dice.choice(("*", "*", ("exp_1", "exp_2", "exp_9"))),
                members=dice.choice((None, None, tuple(bundle(n) for n in (1, 2, 3) if dice.random() < 0.7))),
                priority=dice.choice(((), ("exp_3", "exp_2"))),
            )
        ],
    }
    _break_something(dice, world_fields)
    kinds = ("experts", "consents", "grants", "rules", "deployments", "tenants", "bases")
    stated = {kind: tuple(facts) for kind, facts in world_fields.items() if kind in kinds}
    return world(licenses=_named_by(experts), **stated), ask()


def _named_by(experts: list[ExpertFact]) -> tuple[LicenseFact, ...]:
    """The licenses that experts and datasets name (a smaller snapshot is digested faster)."""
    text = " ".join(
        text for e in experts for text in ("CC0-1.0", e.license, *(d.license for d in e.datasets))
    )
    return tuple(fact for fact in LICENSES if fact.key.lower() in text.lower())


def _quarrel(dice: random.Random) -> Snapshot:
    """A world of two to four experts that are permitted alone, but whose licenses may clash together."""
    sharing = dice.random() < 0.5
    numbers = range(1, dice.randint(2, 4) + 1)
    keys = (
        ("MIT", "CC-BY-SA-4.0", "CC-BY-NC-SA-4.0") if sharing else ("MIT", "LicenseRef-70", "LicenseRef-40")
    )
    action = "export_weights" if sharing else "infer"
    experts = [expert(n, license=dice.choice(keys)) for n in numbers]
    return world(
        experts=tuple(experts),
        licenses=_named_by(experts),
        consents=tuple(
            consent(n, action=action, valid_until_us=dice.choice((None, *TIMES))) for n in numbers
        ),
        grants=tuple(grant(n, action=action) for n in numbers),
        rules=(rule(action=action),),
        deployments=(
            deployment(
                action=action,
                commercial=not sharing,
                on_conflict=dice.choice(("strict", "drop_by_rule")),
                priority=dice.choice(((), ("exp_3", "exp_2"))),
            ),
        ),
    )


def _random_expert(dice: random.Random, number: int, owner: str) -> ExpertFact:
    datasets = [
        dataset(
            number * 10 + place,
            tenant=owner if dice.random() < 0.95 else dice.choice(OWNERS),
            license=dice.choice(("CC0-1.0", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0")),
            consent=dice.choice(("with_expert",) * 16 + ("separate", "withdrawn")),
        )
        for place in range(dice.choice((1, 1, 2)))
    ]
    common = ("MIT", "MIT", "mit", "CC-BY-4.0", "MIT OR CC-BY-NC-4.0", "CC-BY-SA-4.0", "LicenseRef-70")
    rare = (
        "CC-BY-NC-4.0",
        "CC-BY-NC-SA-4.0",
        "NOASSERTION",
        "MIT OR",
        "LicenseRef-nobody AND MIT",
        "LicenseRef-unsure",
        "LicenseRef-40",
        "LicenseRef-unread OR (CC-BY-4.0 AND LicenseRef-rail)",
        "LicenseRef-badterm",
    )
    return expert(
        number,
        tenant=owner,
        datasets=tuple(datasets) if dice.random() < 0.98 else (),
        license=dice.choice(common if dice.random() < 0.8 else rare),
        state=dice.choice(("listed",) * 20 + ("sealed", "suspended", "erased")),
        base_digest=BASE if dice.random() < 0.97 else bundle(77),
    )


def _interval(dice: random.Random) -> dict[str, Any]:
    return {"valid_from_us": dice.choice(TIMES), "valid_until_us": dice.choice((None, *TIMES))}


def _words(dice: random.Random) -> dict[str, Any]:
    bad = dice.random() < 0.03
    return {
        "action": dice.choice(("infer", "infer", "infer", "*", "evaluate", "export_weights")),
        "purpose": "gibberish" if bad else dice.choice((*PURPOSES, "*")),
        "region": dice.choice((*REGIONS, "*")) if dice.random() < 0.98 else "atlantis",
    }


def _maybe_narrower(dice: random.Random) -> dict[str, Any]:
    if dice.random() < 0.75:
        until_us = dice.choice((None, None, *TIMES[3:]))
        return {"action": dice.choice(("infer", "*", "*")), "valid_until_us": until_us}
    return {
        **_words(dice),
        **_interval(dice),
        "commercial": dice.random() < 0.6,
        "recipient": dice.choice(("*", "*", *CONSUMERS)),
        "state": dice.choice(("given", "given", "given", "withdrawn")),
    }


def _random_consent(dice: random.Random, number: int) -> ConsentFact:
    about = dice.choice((None, None, "ds_10", "ds_20", "ds_11"))
    return consent(
        number,
        expert_id=dice.choice(("exp_1", "exp_2", "exp_3", "*")),
        dataset_id=about,
        tenant=dice.choice(OWNERS),
        effect=dice.choice(("permit", "permit", "forbid")),
        commercial=dice.random() < 0.7,
        recipient=dice.choice(("*", *CONSUMERS)),
        state=dice.choice(("given", "given", "withdrawn")),
        **_words(dice),
        **_interval(dice),
    )


def _random_grant(dice: random.Random, number: int) -> GrantFact:
    return grant(
        number,
        expert_id=dice.choice(("exp_1", "exp_2", "*")),
        tenant=dice.choice(OWNERS),
        consumer_tenant=dice.choice(("*", *CONSUMERS)),
        commercial=dice.random() < 0.7,
        state=dice.choice(("given", "given", "revoked")),
        **_words(dice),
        **_interval(dice),
    )


def _random_rule(dice: random.Random, number: int) -> RuleFact:
    return rule(
        number,
        effect=dice.choice(("permit", "forbid")),
        expert_id=dice.choice(("exp_1", "exp_2", "*")),
        consumer_tenant=dice.choice(("*", *CONSUMERS)),
        **_words(dice),
    )


def _break_something(dice: random.Random, fields: dict[str, Any]) -> None:
    """Takes one thing away in some of the worlds, so that each gate is now and then alone in its no."""
    what = dice.choice(("nothing",) * 8 + ("rule", "grant", "grant", "consent", "owner", "consumer", "base"))
    if what == "rule":
        fields["rules"] = [one for one in fields["rules"] if one.effect == "forbid"]
    elif what == "grant":
        fields["grants"] = fields["grants"][1:]
    elif what == "consent":
        fields["consents"] = fields["consents"][1:]
    elif what in ("owner", "consumer"):
        gone = dice.choice(OWNERS) if what == "owner" else "app"
        status = dice.choice(("suspended", None))
        slugs = [s for s in (*OWNERS, *CONSUMERS) if s != gone or status]
        fields["tenants"] = [TenantFact(slug=s, status=status if s == gone else "active") for s in slugs]
    elif what == "base":
        stated: dict[str, Any] = dice.choice(({"status": "suspended"}, {"license": "NOASSERTION"}))
        fields["bases"] = [
            BaseFact(**{"base_digest": BASE, "name": "public", "license": "CC0-1.0", **stated})
        ]

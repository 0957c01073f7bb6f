# SPDX-License-Identifier: Apache-2.0
"""Worlds for the tests of policy: one in which everything holds, and seeded random ones.

The random generator starts from a world in which everything holds and breaks a few things, so that
permits stay frequent and every gate is now and then the only one that denies. Worlds hold at least two
experts and a moment after now at which a fact begins or ends. How often what happens is measured by a test.
"""

from __future__ import annotations

import random
from typing import Any

from policy.deciding.composition import Question
from policy.facts.snapshot import (
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
    license_fact("LicenseRef-nd", derivatives=False, distribution_weights=None, user_cap=100),
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
    """A world of two to four experts and a question about it, both made by the seed alone."""
    dice = random.Random(seed)
    roll = dice.random()
    if roll < 0.1:
        return _quarrel(dice), ask()
    experts = _random_experts(dice)
    world_fields: dict[str, Any] = {
        "experts": experts,
        "consents": [
            *(
                consent(n, expert_id=e.expert_id, tenant=e.tenant, **_maybe_narrower(dice))
                for n, e in enumerate(experts, 1)
            ),
            *_dataset_consents(dice, experts),
            *(_random_consent(dice, i) for i in range(10, 10 + dice.choice((0, 0, 0, 1, 2, 3)))),
        ],
        "grants": [
            *(_usual_grant(dice, n, e) for n, e in enumerate(experts, 1)),
            *(_random_grant(dice, i) for i in range(10, 10 + dice.choice((0, 1, 2)))),
        ],
        "rules": [
            rule(),
            *(_random_rule(dice, i) for i in range(10, 10 + dice.choice((0, 0, 0, 0, 0, 1, 2)))),
        ],
        "deployments": [_random_deployment(dice)],
    }
    _break_something(dice, world_fields)
    if roll > 0.975:
        _garble_question(dice, world_fields)
    _begin_or_end_something(dice, world_fields)
    stated = {
        kind: tuple(facts) if isinstance(facts, list) else facts for kind, facts in world_fields.items()
    }
    licenses = _licenses(dice, experts, stated.get("bases", ()))
    return world(licenses=licenses, **stated), ask()


def _random_experts(dice: random.Random) -> list[ExpertFact]:
    experts = [
        _random_expert(dice, number, dice.choice(OWNERS)) for number in range(1, dice.choice((3, 3, 3, 4)))
    ]
    if dice.random() < 0.04:  # two versions of one expert
        experts[1] = experts[1].model_copy(update={"expert_id": "exp_1", "tenant": experts[0].tenant})
    if dice.random() < 0.1:  # a dataset that two experts were trained on
        experts[1] = experts[1].model_copy(update={"datasets": experts[0].datasets})
    return experts


def _random_deployment(dice: random.Random) -> DeploymentFact:
    some = dice.choice((("exp_1", "exp_2", "exp_9"), ("exp_1", bundle(2)), (bundle(3), "exp_2", bundle(9))))
    return deployment(
        purpose=dice.choice((*PURPOSES[:5], "medical-advice")),
        region=dice.choice(REGIONS),
        commercial=dice.random() < 0.3,
        action=dice.choice(("infer",) * 10 + ("evaluate", "fine_tune", "view_card", "export_weights")),
        top_k=dice.randint(1, 5),
        on_conflict=dice.choice(("strict", "drop_by_rule")),
        candidates=some if dice.random() < 0.12 else "*",
        members=dice.choice((None, None, None, tuple(bundle(n) for n in (1, 2, 3) if dice.random() < 0.7))),
        priority=dice.choice(((), ("exp_3", "exp_2"))),
    )


def _garble_question(dice: random.Random, fields: dict[str, Any]) -> None:
    """Asks in words, or of a version, that nobody knows."""
    what = dice.choice(("action", "purpose", "region", "vocabulary_version", "engine_version"))
    if what.endswith("version"):
        fields[what] = "999"
    else:
        word = "*" if dice.random() < 0.3 else "gibberish"
        fields["deployments"] = [fields["deployments"][0].model_copy(update={what: word})]


def _begin_or_end_something(dice: random.Random, fields: dict[str, Any]) -> None:
    """Lets a fact begin or end after now, where none does."""
    facts = (*fields["consents"], *fields["grants"])
    if any(f.valid_from_us > NOW_US or (f.valid_until_us or 0) > NOW_US for f in facts):
        return
    kind = dice.choice([kind for kind in ("consents", "grants") if fields[kind]] or ["consents"])
    if not fields[kind]:
        fields[kind] = [consent(40)]
    fields[kind][0] = fields[kind][0].model_copy(update={"valid_until_us": dice.choice(TIMES[3:])})


def _licenses(
    dice: random.Random, experts: list[ExpertFact], bases: tuple[BaseFact, ...]
) -> tuple[LicenseFact, ...]:
    """The licenses that are named (a smaller snapshot is digested faster), now and then with other terms."""
    texts = [e.license for e in experts] + [d.license for e in experts for d in e.datasets]
    text = " ".join(("CC0-1.0", *texts, *(base.license for base in bases))).lower()
    facts = [fact for fact in LICENSES if fact.key.lower() in text]
    if dice.random() < 0.2:
        place = dice.randrange(len(facts))
        changed: dict[str, Any] = dice.choice(
            (
                {"hosted_use": dice.choice((False, None))},
                {"use_commercial": dice.choice((False, None))},
                {
                    "derivatives": dice.choice((False, None)),
                    "distribution_weights": dice.choice((True, None)),
                },
                {"reviewed_by": dice.choice(("", " "))},
                {"prohibited_purposes": (dice.choice((*PURPOSES, "gibberish")),)},
                {"royalty_ppm": dice.choice((400_000, 500_000, 600_000, 1_000_000))},
                {"share_alike_group": dice.choice(("CC-BY-SA-4.0", "GPL"))},
                {"attribution": None, "notice": True, "flow_down": ("a", "b"), "user_cap": 5},
                {"attribution": True, "title": "A title", "notice": True, "url": "https://example.org/terms"},
            )
        )
        facts[place] = facts[place].model_copy(update=changed)
    return tuple(facts)


def _quarrel(dice: random.Random) -> Snapshot:
    """A world of two to four experts that are permitted alone, but whose licenses may clash together."""
    sharing = dice.random() < 0.5
    numbers = range(1, dice.randint(2, 4) + 1)
    keys = (
        ("MIT", "CC-BY-SA-4.0", "CC-BY-NC-SA-4.0", "MIT AND CC-BY-SA-4.0")
        if sharing
        else ("MIT", "LicenseRef-70", "LicenseRef-40", "LicenseRef-40 AND CC-BY-4.0")
    )
    action = "export_weights" if sharing else "infer"
    shared = dataset(1, license=keys[2] if dice.random() < 0.3 else "CC0-1.0")
    experts = [
        expert(n, license=dice.choice(keys), datasets=(shared if dice.random() < 0.4 else dataset(n * 10),))
        for n in numbers
    ]
    bases = (BaseFact(base_digest=BASE, name="public", license=dice.choice(("CC0-1.0",) * 4 + keys[1:3])),)
    fields: dict[str, Any] = {
        "experts": tuple(experts),
        "bases": bases,
        "consents": [
            consent(n, action=action, valid_until_us=dice.choice((None, *TIMES[2:]))) for n in numbers
        ],
        "grants": [grant(n, action=action) for n in numbers],
        "rules": (rule(action=action),),
        "deployments": (
            deployment(
                action=action,
                commercial=not sharing if dice.random() < 0.9 else sharing,
                on_conflict=dice.choice(("strict", "drop_by_rule")),
                priority=dice.choice(((), ("exp_3", "exp_2"))),
            ),
        ),
    }
    _begin_or_end_something(dice, fields)
    stated = {kind: tuple(facts) for kind, facts in fields.items()}
    return world(licenses=_licenses(dice, experts, bases), **stated)


_COMMON = (
    *("MIT", "MIT", "mit", "CC-BY-4.0", "MIT OR CC-BY-NC-4.0", "CC-BY-SA-4.0", "LicenseRef-70"),
    *("MIT AND CC-BY-4.0", "(MIT OR LicenseRef-70) AND CC-BY-4.0"),
)
_RARE = (
    "CC-BY-NC-4.0",
    "CC-BY-NC-SA-4.0",
    "NOASSERTION",
    "MIT OR",
    "(MIT",
    "MIT CC-BY-4.0",
    "LicenseRef-nobody AND MIT",
    "LicenseRef-nobody OR MIT",
    "LicenseRef-unsure",
    "LicenseRef-40",
    "LicenseRef-70 AND LicenseRef-40",
    "LicenseRef-nd",
    "LicenseRef-rail",
    "LicenseRef-unread OR (CC-BY-4.0 AND LicenseRef-rail)",
    "LicenseRef-unread",
    "LicenseRef-badterm",
    "LicenseRef-badterm OR (CC-BY-NC-4.0 OR (LicenseRef-40 AND MIT))",
    "(MIT OR CC-BY-4.0) AND CC-BY-4.0",
    "CC-BY-SA-4.0 AND (CC-BY-NC-SA-4.0 OR MIT)",
)


def _random_expert(dice: random.Random, number: int, owner: str) -> ExpertFact:
    datasets = [
        dataset(
            number * 10 + place,
            tenant=owner if dice.random() < 0.94 else dice.choice(OWNERS),
            license=dice.choice(("CC0-1.0", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0")),
            consent=dice.choice(("with_expert",) * 14 + ("separate", "separate", "withdrawn")),
        )
        for place in range(dice.choice((1, 1, 2)))
    ]
    return expert(
        number,
        tenant=owner,
        datasets=tuple(datasets) if dice.random() < 0.98 else (),
        license=dice.choice(_COMMON if dice.random() < 0.8 else _RARE),
        state=dice.choice(("listed",) * 20 + ("sealed", "suspended", "erased")),
        base_digest=BASE if dice.random() < 0.97 else bundle(77),
    )


def _dataset_consents(dice: random.Random, experts: list[ExpertFact]) -> list[ConsentFact]:
    """Words of their own for the datasets that need one; most of them suffice."""
    needing = {d.id: d for e in experts for d in e.datasets if d.consent == "separate"}
    return [
        consent(
            30 + place,
            expert_id="*",
            dataset_id=one.id,
            tenant=one.tenant,
            **(_maybe_narrower(dice) if dice.random() < 0.7 else {"state": "withdrawn"}),
        )
        for place, one in enumerate(needing.values())
    ]


def _usual_grant(dice: random.Random, number: int, to: ExpertFact) -> GrantFact:
    fields: dict[str, Any] = {"expert_id": to.expert_id, "tenant": to.tenant}
    fields["consumer_tenant"] = dice.choice(("*", "app"))
    fields["action"] = dice.choice(("*",) * 8 + ("infer", "infer", "export_weights"))
    if dice.random() < 0.06:
        fields |= _interval(dice)
    return grant(number, **fields)


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
        effect=dice.choice(("permit", "forbid")),
        commercial=dice.random() < 0.7,
        recipient=dice.choice(("*", *CONSUMERS)),
        state=dice.choice(("given",) * 4 + ("withdrawn",)),
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
    stated: dict[str, Any]
    what = dice.choice(
        ("nothing",) * 10
        + ("rule", "one rule", "grant", "revocation", "consent", "prohibition", "owner", "consumer", "base")
    )
    if what == "rule":
        fields["rules"] = [one for one in fields["rules"] if one.effect == "forbid"]
    elif what == "one rule":  # whatever else there is, the rule that permits everything is gone
        own = _random_rule(dice, 9).model_copy(update={"effect": "permit", "consumer_tenant": "*"})
        fields["rules"] = [own, *fields["rules"][1:]]
    elif what == "grant":
        fields["grants"] = fields["grants"][1:]
    elif what == "revocation":
        fields["grants"] = [one.model_copy(update={"state": "revoked"}) for one in fields["grants"]]
    elif what == "consent":
        fields["consents"] = fields["consents"][1:]
    elif what == "prohibition":
        purpose = dice.choice(("gibberish", "any", "medical-research", "military-research"))
        stated = {"expert_id": "*", "tenant": dice.choice(OWNERS), "effect": "forbid", "purpose": purpose}
        fields["consents"] = [*fields["consents"], consent(20, **stated, action="*")]
    elif what in ("owner", "consumer"):
        gone = dice.choice(OWNERS) if what == "owner" else "app"
        status = dice.choice(("suspended", None))
        slugs = [s for s in (*OWNERS, *CONSUMERS) if s != gone or status]
        fields["tenants"] = [TenantFact(slug=s, status=status if s == gone else "active") for s in slugs]
    elif what == "base":
        stated = dice.choice(
            (
                {"status": "suspended"},
                {"license": "NOASSERTION"},
                {"license": "CC-BY-4.0 OR LicenseRef-40"},
                {"license": "LicenseRef-70 AND LicenseRef-40"},
                {"base_digest": bundle(78)},
            )
        )
        fields["bases"] = [
            BaseFact(**{"base_digest": BASE, "name": "public", "license": "CC0-1.0", **stated})
        ]

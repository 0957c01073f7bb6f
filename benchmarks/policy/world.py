# SPDX-License-Identifier: Apache-2.0
"""Registers of any size and questions about them, drawn by a seed.

Owners say several things about each expert, in words of the whole vocabulary, some for a time; every tenth
expert was also trained on another owner's dataset. Knows no database and measures nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Final

from policy.deciding.licenses import shipped_licenses
from policy.deciding.questions import Question
from policy.facts.snapshot import (
    BaseFact,
    ConsentFact,
    DatasetFact,
    DeploymentFact,
    ExpertFact,
    GrantFact,
    RuleFact,
    Snapshot,
    TenantFact,
)
from policy.facts.vocabulary import CURRENT_VERSION, vocabulary

BASE: Final = "sha256:" + "b" * 64
NOW_US: Final = 1_750_000_000_000_000
DAY_US: Final = 86_400_000_000
_WORDS: Final = vocabulary()
PURPOSES: Final = tuple(sorted(_WORDS.purposes))
REGIONS: Final = ("global", *sorted(set(_WORDS.regions) - {"global"}))
_LICENSES: Final = (
    *("MIT", "Apache-2.0", "CC-BY-4.0") * 2,
    *("CC0-1.0", "CC-BY-NC-4.0", "CC-BY-SA-4.0", "LicenseRef-OpenRAIL-M"),
    *("MIT OR CC-BY-NC-4.0", "Apache-2.0 AND CC-BY-4.0"),
)
_PLAIN: Final = tuple(one for one in _LICENSES if " " not in one)
_ACTIONS: Final = (*("infer",) * 6, "evaluate", "compose", "fine_tune", "export_weights")


class World:
    """One register, drawn piece by piece.

    Args:
        experts: how many.
        consents: what an owner says about each.
        grants: how many consumers each is granted to.
        deployments: how many, of ``candidates`` experts each.
        candidates: of a deployment; None for all.
        plain: whether every expert has one dataset and licenses without AND and OR, and only hosted use is
            asked for.
        seed: equal seeds draw equal worlds.
    """

    def __init__(
        self,
        *,
        experts: int = 512,
        consents: int = 3,
        grants: int = 3,
        deployments: int = 64,
        candidates: int | None = None,
        plain: bool = False,
        seed: int = 1,
    ) -> None:
        self._dice = random.Random(seed)  # noqa: S311 - it draws worlds, not keys
        self._plain = plain
        self._each = consents, grants
        self._candidates = candidates
        self.owners = [f"owner-{number}" for number in range(max(2, experts // 16))]
        self.consumers = [f"app-{number}" for number in range(16)]
        self._consents: list[ConsentFact] = []
        self._grants: list[GrantFact] = []
        facts = [self._expert(number) for number in range(experts)]
        self.names = [fact.expert_id for fact in facts]
        self.bundles = [fact.bundle_digest for fact in facts]
        self.snapshot = Snapshot(
            epoch=1,
            published_at_us=NOW_US,
            vocabulary_version=CURRENT_VERSION,
            tenants=tuple(TenantFact(slug=slug, status="active") for slug in (*self.owners, *self.consumers)),
            bases=(BaseFact(base_digest=BASE, name="public", license="Apache-2.0"),),
            licenses=shipped_licenses(),
            experts=tuple(facts),
            consents=tuple(self._consents),
            grants=tuple(self._grants),
            rules=tuple(self._rules()),
            deployments=tuple(self._deployment(number) for number in range(deployments)),
        )

    def _expert(self, number: int) -> ExpertFact:
        dice = self._dice
        owner = dice.choice(self.owners)
        expert_id = f"exp_{number:06d}"
        sets = [
            DatasetFact(id=f"ds_{number:06d}", tenant=owner, license=dice.choice(("CC0-1.0", "CC-BY-4.0")))
        ]
        if not self._plain and dice.random() < 0.1:
            other = dice.choice([one for one in self.owners if one != owner])
            sets.append(DatasetFact(id=f"ds_{number:06d}x", tenant=other, license="MIT", consent="separate"))
            self._consent(expert_id, other, "any", dataset_id=sets[1].id)
        consents, grants = self._each
        # Nobody says the same twice at once: the register refuses it.
        for place, purpose in enumerate(dice.sample(PURPOSES, consents)):
            broad = "any" if place == 0 and dice.random() < 0.9 and purpose != "any" else purpose
            region = "global" if place == 0 else dice.choice(REGIONS[1:])
            self._consent(expert_id, owner, broad, region=region, commercial=dice.random() < 0.8)
        if not self._plain and dice.random() < 0.05:
            fields = {"effect": "forbid", "region": dice.choice(REGIONS)}
            self._consent(expert_id, owner, dice.choice(PURPOSES), **fields)
        for place, named in enumerate(dice.sample(self.consumers, grants)):
            consumer = "*" if place == 0 and dice.random() < 0.7 else named
            self._grants.append(
                GrantFact(
                    id=f"gra_{len(self._grants):06d}",
                    expert_id=expert_id,
                    tenant=owner,
                    consumer_tenant=consumer,
                    **self._span(),
                )
            )
        return ExpertFact(
            bundle_digest=f"sha256:{dice.getrandbits(256):064x}",
            expert_id=expert_id,
            name=f"expert-{number}",
            tenant=owner,
            base_digest=BASE,
            license=dice.choice(_PLAIN if self._plain else _LICENSES),
            datasets=tuple(sets),
            state="listed",
            price_micro_per_1k_tokens=dice.randrange(1, 5_000),
        )

    def _consent(self, expert_id: str, tenant: str, purpose: str, **fields: Any) -> None:
        stated = {
            "id": f"con_{len(self._consents):06d}",
            "expert_id": expert_id,
            "tenant": tenant,
            "effect": "permit",
            "action": self._dice.choice(("infer", "*", "*")),
            "purpose": purpose,
            "region": "global",
            "commercial": True,
            **self._span(),
        }
        self._consents.append(ConsentFact(**{**stated, **fields}))

    def _span(self) -> dict[str, int | None]:
        dice = self._dice
        ends_us = None if dice.random() < 0.7 else NOW_US + dice.randrange(1, 400 * DAY_US)
        return {"valid_from_us": NOW_US - dice.randrange(1, 400 * DAY_US), "valid_until_us": ends_us}

    def _rules(self) -> Iterator[RuleFact]:
        dice = self._dice
        yield RuleFact(id="rul_0000", effect="permit")
        yield RuleFact(id="rul_0001", effect="permit", action="export_weights")
        for number in range(2, 42):
            yield RuleFact(
                id=f"rul_{number:04d}",
                effect=dice.choice(("permit", "forbid")),
                purpose=dice.choice(PURPOSES),
                region=dice.choice(REGIONS),
                consumer_tenant=dice.choice(self.consumers),
                expert_id=f"exp_{dice.randrange(len(self._grants)) // 4:06d}",
                text="as agreed",
            )

    def _deployment(self, number: int) -> DeploymentFact:
        named = "*" if self._candidates is None else tuple(self._dice.sample(self.names, self._candidates))
        return DeploymentFact(name=f"dep-{number:03d}", base_digest=BASE, candidates=named, **self._use())

    def _use(self) -> dict[str, Any]:
        dice = self._dice
        return {
            "tenant": dice.choice(self.consumers),
            "action": dice.choice(("infer", "evaluate") if self._plain else _ACTIONS),
            "purpose": dice.choice(PURPOSES),
            "region": dice.choice(REGIONS),
            "commercial": dice.random() < 0.3,
            "top_k": dice.randint(1, 8),
            "on_conflict": dice.choice(("strict", "drop_by_rule")),
        }

    def questions(self, count: int) -> list[Question]:
        """Distinct questions, each about all experts: all of them, or named by id or digest in any order."""
        found: dict[tuple[Any, ...], Question] = {}
        while len(found) < count:
            use = self._use()
            at_us = NOW_US + self._dice.randrange(300 * DAY_US)
            named: Any = self._dice.choice(("*", self.names, self.bundles))
            if named != "*":
                named = tuple(self._dice.sample(named, len(named)))
            question = Question(at_us=at_us, base_digest=BASE, candidates=named, **use)
            found[*use.values()] = question
        return list(found.values())

    def log(self, count: int, *, spelled_out: int = 100) -> list[Question]:
        """Logged questions over 30 days: most of deployments, some spelled out; equal ones come again."""
        dice = self._dice
        uses: list[dict[str, Any]] = [{"deployment": fact.name} for fact in self.snapshot.deployments]
        uses = uses * 4 + [{"base_digest": BASE, **self._use()} for _ in range(spelled_out)]
        return [
            Question(at_us=NOW_US + dice.randrange(30 * DAY_US), **dice.choice(uses)) for _ in range(count)
        ]

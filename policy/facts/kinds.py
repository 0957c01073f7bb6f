# SPDX-License-Identifier: Apache-2.0
"""Facts: what the register states about tenants, bases, experts, words, rules and endpoints, as documents.

A fact is frozen and has one canonical form; which field tells two facts of a kind apart stands in ``KINDS``.
Knows no snapshot, and nothing of how facts come about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from policy.facts.terms import (
    ANY,
    AtUs,
    ConsentState,
    Count,
    Effect,
    ExpertState,
    GrantState,
    Micro,
    OnConflict,
    Ppm,
    Standing,
    TopK,
    WhenCutOff,
)


class Fact(BaseModel):
    """A frozen document that crosses processes; fields are only ever added."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class TenantFact(Fact):
    """A tenant and whether it may act at all."""

    slug: str
    status: Standing


class BaseFact(Fact):
    """A frozen public model and the SPDX expression of its license."""

    base_digest: str
    name: str
    license: str
    status: Standing = "active"


class DatasetFact(Fact):
    """One dataset of an expert's lineage.

    ``consent`` says whose word counts: ``with_expert`` means that the dataset belongs to the expert's own
    tenant and the consent for the expert speaks for it; ``separate`` means that it needs consents of its
    own (``ConsentFact.dataset_id``); ``withdrawn`` denies every use of experts trained on it.
    """

    id: str
    tenant: str
    license: str
    consent: Literal["with_expert", "separate", "withdrawn"] = "with_expert"


class ExpertFact(Fact):
    """One version of an expert with its whole lineage."""

    bundle_digest: str
    expert_id: str
    name: str
    tenant: str
    base_digest: str
    license: str
    datasets: tuple[DatasetFact, ...]
    state: ExpertState
    price_micro_per_1k_tokens: Micro

    @model_validator(mode="after")
    def _canonical(self) -> Self:
        # A frozen model is put into its one form before anyone sees it; hence the direct __dict__ write.
        self.__dict__["datasets"] = as_set(self.datasets, lambda dataset: dataset.id, "dataset")
        return self


class ConsentFact(Fact):
    """An owner's dated, withdrawable word about the use of an expert, or of one dataset.

    A permit covers its purpose and region and everything below them; a forbid also hits requests that
    contain its purpose or region. ``commercial``: a permit with it covers both kinds of use, without it
    only non-commercial use; a forbid hits both whatever it says (who refuses commercial use permits
    without it). A consent is live in [valid_from_us, valid_until_us). ``tenant`` must be the owner (of
    the dataset, where ``dataset_id`` is set): nobody else's word counts. ``expert_id`` may be ``*``: all
    experts of that owner, or all experts trained on that dataset.
    """

    id: str
    expert_id: str
    tenant: str
    effect: Effect
    action: str
    purpose: str
    region: str
    recipient: str = ANY
    commercial: bool
    valid_from_us: AtUs
    valid_until_us: AtUs | None = None
    state: ConsentState = "given"
    dataset_id: str | None = None


class GrantFact(Fact):
    """One consumer's access to an expert under terms; ``tenant`` is the owner who gave it."""

    id: str
    expert_id: str
    tenant: str
    consumer_tenant: str
    action: str = ANY
    purpose: str = ANY
    region: str = ANY
    commercial: bool = True
    valid_from_us: AtUs
    valid_until_us: AtUs | None = None
    state: GrantState = "given"


class RuleFact(Fact):
    """What compliance staff write: permit or forbid. Every field may be ``*``; ``text`` says why."""

    id: str
    effect: Effect
    action: str = ANY
    purpose: str = ANY
    region: str = ANY
    expert_id: str = ANY
    consumer_tenant: str = ANY
    text: str = ""


class LicenseFact(Fact):
    """Machine-readable terms of one license, versioned and reviewed by a named person.

    A facet that is None is unknown, and unknown denies where the question depends on it. ``key`` is an
    SPDX id, an ``id WITH exception`` pair or a ``LicenseRef-``.
    """

    key: str
    version: Count = 1
    title: str = ""
    url: str = ""
    hosted_use: bool | None
    use_commercial: bool | None
    derivatives: bool | None
    distribution_weights: bool | None
    attribution: bool | None
    notice: bool = False
    share_alike_group: str | None = None
    prohibited_purposes: tuple[str, ...] = ()
    flow_down: tuple[str, ...] = ()
    user_cap: Count | None = None
    royalty_ppm: Ppm = 0
    reviewed_by: str = ""


class DeploymentFact(Fact):
    """A named endpoint: who asks, for what, and which experts are candidates.

    ``members`` are the bundle digests that the last review let in (None: never reviewed, every permitted
    candidate enters); between reviews a composition may only lose members. ``priority`` lists expert ids
    that ``drop_by_rule`` keeps first. ``when_cut_off`` is what a host does with open answers that the
    register no longer vouches for: ``hold`` them for a while, or ``refuse`` to go on at once.
    """

    name: str
    tenant: str
    base_digest: str
    purpose: str
    region: str
    commercial: bool
    action: str = "infer"
    candidates: Literal["*"] | tuple[str, ...] = ANY
    top_k: TopK = 2
    on_conflict: OnConflict = "strict"
    members: tuple[str, ...] | None = None
    priority: tuple[str, ...] = ()
    # Left out where it says what it always said, so that snapshots of earlier releases keep their digests.
    when_cut_off: WhenCutOff = Field(default="hold", exclude_if=lambda said: said == "hold")


AnyFact = TypeVar("AnyFact", bound=Fact)

KINDS: Final[dict[str, tuple[type[Fact], Callable[[Any], str]]]] = {
    "tenants": (TenantFact, lambda fact: fact.slug),
    "bases": (BaseFact, lambda fact: fact.base_digest),
    "licenses": (LicenseFact, lambda fact: fact.key.lower()),
    "experts": (ExpertFact, lambda fact: fact.bundle_digest),
    "consents": (ConsentFact, lambda fact: fact.id),
    "grants": (GrantFact, lambda fact: fact.id),
    "rules": (RuleFact, lambda fact: fact.id),
    "deployments": (DeploymentFact, lambda fact: fact.name),
}
"""Every kind in the order of writing: the class of its facts, and what tells two of them apart."""


def as_set(facts: Sequence[AnyFact], identity: Callable[[AnyFact], str], kind: str) -> tuple[AnyFact, ...]:
    """Sorts facts, drops repetitions and refuses two different facts of one identity.

    Raises:
        ValueError: two different facts have one identity.
    """
    known: dict[str, AnyFact] = {}
    for fact in facts:
        if known.setdefault(identity(fact), fact) is not fact and known[identity(fact)] != fact:
            # Pydantic turns this into a ValidationError that names the place.
            raise ValueError(f"two different facts of kind {kind} are called {identity(fact)}")
    return tuple(known[key] for key in sorted(known))

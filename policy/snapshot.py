# SPDX-License-Identifier: Apache-2.0
"""Everything a decision needs at one epoch, as one frozen document with a Merkle digest.

A snapshot holds facts and nothing else: no clock, no queries. Facts form a set: their order and
duplicates are lost on construction, so equal sets of facts have equal bytes and equal digests. Words
that the vocabulary does not know are kept (a decision denies because of them); what is not even of the
right shape is refused by ``from_json``. It does not know how facts come about or whether a decision was
made with them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model_core.errors import ProductError
from model_core.packing.canonical import (
    InclusionProof,
    canonical_bytes,
    merkle_root,
    parse_canonical,
    prove_inclusion,
)
from policy.errors import MalformedSnapshot, SnapshotMismatch
from policy.terms import (
    ANY,
    ENGINE_VERSION,
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
        self.__dict__["datasets"] = _as_set(self.datasets, lambda dataset: dataset.id, "dataset")
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

# Which field tells facts of one kind apart; also the order in which they are written.
_KINDS: Final[tuple[tuple[str, Callable[[Any], str]], ...]] = (
    ("tenants", lambda fact: fact.slug),
    ("bases", lambda fact: fact.base_digest),
    ("licenses", lambda fact: fact.key.lower()),
    ("experts", lambda fact: fact.bundle_digest),
    ("consents", lambda fact: fact.id),
    ("grants", lambda fact: fact.id),
    ("rules", lambda fact: fact.id),
    ("deployments", lambda fact: fact.name),
)


class Snapshot(Fact):
    """All facts of one epoch."""

    epoch: Count
    published_at_us: AtUs
    vocabulary_version: str
    engine_version: str = ENGINE_VERSION
    tenants: tuple[TenantFact, ...] = ()
    bases: tuple[BaseFact, ...] = ()
    licenses: tuple[LicenseFact, ...] = ()
    experts: tuple[ExpertFact, ...] = ()
    consents: tuple[ConsentFact, ...] = ()
    grants: tuple[GrantFact, ...] = ()
    rules: tuple[RuleFact, ...] = ()
    deployments: tuple[DeploymentFact, ...] = ()

    @model_validator(mode="after")
    def _canonical(self) -> Self:
        for kind, identity in _KINDS:
            self.__dict__[kind] = _as_set(getattr(self, kind), identity, kind)
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:  # noqa: ARG002 - frozen all the way down
        """A copy with some fields replaced, checked and put into canonical form like any other.

        Pydantic's own would carry the remembered digest over to the changed copy.
        """
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate({**fields, **(update or {})})

    def to_json(self) -> bytes:
        """The canonical bytes (RFC 8785) of the whole snapshot."""
        kinds = {kind for kind, _ in _KINDS}
        parts = {name: canonical_bytes(one) for name, one in self._head().items()}
        for kind in kinds:
            parts[kind] = b"[" + b",".join(map(_fact_bytes, getattr(self, kind))) + b"]"
        written = (b'"%b":%b' % (name.encode(), parts[name]) for name in sorted(parts))
        return b"{" + b",".join(written) + b"}"

    @classmethod
    def from_json(cls, data: bytes, expect_digest: str | None = None) -> Self:
        """Reads what ``to_json`` wrote.

        Args:
            data: canonical bytes.
            expect_digest: the published digest, if it is known; then it is compared.

        Raises:
            MalformedSnapshot: not canonical JSON, a field is missing or of the wrong type, or two facts
                claim the same identity.
            SnapshotMismatch: the digest is not the expected one.
        """
        try:
            snapshot = cls.model_validate_json(data, strict=True)
            if snapshot.to_json() != data:
                # Either not canonical, which is refused here, or with fields that a later release added.
                parse_canonical(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(str(step) for step in first["loc"]) or "document"
            raise MalformedSnapshot(
                f"The snapshot is malformed at {place}: {first['msg']}. Ask the register for it again.",
                place=place,
            ) from error
        except ProductError as error:
            raise MalformedSnapshot(
                "The snapshot is not canonical JSON. Ask the register for it again.", reason=error.code
            ) from error
        if expect_digest is not None and snapshot.digest != expect_digest:
            raise SnapshotMismatch(
                "The snapshot is not the published one. Do not serve from it; ask the register for it again.",
                expected=expect_digest,
                actual=snapshot.digest,
                epoch=snapshot.epoch,
            )
        return snapshot

    @cached_property
    def leaves(self) -> tuple[bytes, ...]:
        """The Merkle leaves: the head of the snapshot, then one per fact, in canonical order."""
        facts = [
            b'{"fact":%b,"kind":"%b"}' % (_fact_bytes(fact), kind.encode())
            for kind, _ in _KINDS
            for fact in getattr(self, kind)
        ]
        return (canonical_bytes({"kind": "snapshot", **self._head()}), *facts)

    def _head(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "published_at_us": self.published_at_us,
            "vocabulary_version": self.vocabulary_version,
            "engine_version": self.engine_version,
        }

    @cached_property
    def digest(self) -> str:
        """The root of the Merkle tree over ``leaves``."""
        return merkle_root(self.leaves)

    def prove(self, kind: str, identity: str) -> tuple[bytes, InclusionProof]:
        """Shows that one fact is part of this snapshot: its leaf and the proof up to ``digest``.

        Raises:
            MalformedSnapshot: there is no such fact.
        """
        place = 1
        for name, identify in _KINDS:
            for fact in getattr(self, name):
                if name == kind and identify(fact) == identity:
                    return self.leaves[place], prove_inclusion(self.leaves, place)
                place += 1
        raise MalformedSnapshot("The snapshot holds no such fact.", kind=kind, identity=identity)

    @cached_property
    def tenants_by_slug(self) -> dict[str, TenantFact]:
        """Tenants by slug."""
        return {fact.slug: fact for fact in self.tenants}

    @cached_property
    def bases_by_digest(self) -> dict[str, BaseFact]:
        """Bases by digest."""
        return {fact.base_digest: fact for fact in self.bases}

    @cached_property
    def licenses_by_key(self) -> dict[str, LicenseFact]:
        """Licenses by lower-case key: SPDX ids are matched without regard to case."""
        return {fact.key.lower(): fact for fact in self.licenses}

    @cached_property
    def deployments_by_name(self) -> dict[str, DeploymentFact]:
        """Deployments by name."""
        return {fact.name: fact for fact in self.deployments}

    @cached_property
    def consents_by_expert(self) -> dict[str, tuple[ConsentFact, ...]]:
        """Consents about experts (not datasets) by expert id; those for ``*`` under ``*``."""
        return _grouped((c for c in self.consents if c.dataset_id is None), lambda c: c.expert_id)

    @cached_property
    def consents_by_dataset(self) -> dict[str, tuple[ConsentFact, ...]]:
        """Consents about datasets by dataset id."""
        return _grouped((c for c in self.consents if c.dataset_id is not None), lambda c: str(c.dataset_id))

    @cached_property
    def grants_by_expert(self) -> dict[str, tuple[GrantFact, ...]]:
        """Grants by expert id."""
        return _grouped(self.grants, lambda grant: grant.expert_id)


@lru_cache(maxsize=16384)
def _fact_bytes(fact: Fact) -> bytes:
    """A fact's canonical bytes; kept, for from one epoch to the next most facts stay as they are."""
    return canonical_bytes(fact.model_dump(mode="json"))


def _as_set(facts: Sequence[AnyFact], identity: Callable[[AnyFact], str], kind: str) -> tuple[AnyFact, ...]:
    """Sorts facts, drops repetitions and refuses two different facts of one identity."""
    known: dict[str, AnyFact] = {}
    for fact in facts:
        if known.setdefault(identity(fact), fact) != fact:
            # Pydantic turns this into a ValidationError that names the place.
            raise ValueError(f"two different facts of kind {kind} are called {identity(fact)}")
    return tuple(known[key] for key in sorted(known))


def _grouped(facts: Iterable[AnyFact], identity: Callable[[AnyFact], str]) -> dict[str, tuple[AnyFact, ...]]:
    groups: defaultdict[str, list[AnyFact]] = defaultdict(list)
    for fact in facts:
        groups[identity(fact)].append(fact)
    return {key: tuple(group) for key, group in groups.items()}

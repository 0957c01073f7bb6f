# SPDX-License-Identifier: Apache-2.0
"""Everything a decision needs at one epoch, as one frozen document with a Merkle digest.

A snapshot holds facts and nothing else: no clock, no queries. Facts form a set: their order and
duplicates are lost on construction, so equal sets of facts have equal bytes and equal digests. Words
that the vocabulary does not know are kept (a decision denies because of them); what is not even of the
right shape is refused by ``from_json``. It does not know how facts come about or whether a decision was
made with them.

Two forms of digest exist. ``format`` 1 is the tree of RFC 6962 over the list of all facts; snapshots of
earlier releases keep it for ever. ``format`` 2 is the trie of ``trie`` over the set of facts, below
the head: an epoch that changes one fact costs one path of it, and ``changed`` makes such an epoch out of the
last one without touching the other facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from model_core.errors import ProductError
from model_core.packing.canonical import (
    InclusionProof,
    canonical_bytes,
    merkle_root,
    parse_canonical,
    prove_inclusion,
)
from policy.errors import MalformedSnapshot, SnapshotMismatch
from policy.facts import trie
from policy.facts.indexes import GroupOf, amended_groups, amended_set, found, grouped, named
from policy.facts.kinds import (
    KINDS,
    BaseFact,
    ConsentFact,
    DatasetFact,
    DeploymentFact,
    ExpertFact,
    Fact,
    GrantFact,
    LicenseFact,
    RuleFact,
    TenantFact,
    as_set,
)
from policy.facts.leaves import fact_bytes, leaf_bytes, leaf_name, tree_entries
from policy.facts.pauses import no_cycles_sought
from policy.facts.terms import ENGINE_VERSION, AtUs, Count
from policy.facts.turns import WORDS, Turn, amended_turns, later_turns, turns_of

__all__ = [
    "FORMAT",
    "BaseFact",
    "ConsentFact",
    "DatasetFact",
    "DeploymentFact",
    "Edits",
    "ExpertFact",
    "Fact",
    "GrantFact",
    "LicenseFact",
    "RuleFact",
    "Snapshot",
    "SnapshotFormat",
    "TenantFact",
]

SnapshotFormat = Literal[1, 2]
FORMAT: Final[SnapshotFormat] = 2
"""The form of digest that is published now."""

Edits = Mapping[tuple[str, str], Fact | None]
"""By kind and identity: the fact as it is from now on, None where it is gone."""

GROUPS: Final[dict[str, tuple[str, GroupOf]]] = {
    "consents_by_expert": ("consents", lambda fact: fact.expert_id if fact.dataset_id is None else None),
    "consents_by_dataset": ("consents", lambda fact: fact.dataset_id),
    "grants_by_expert": ("grants", lambda fact: fact.expert_id),
    "experts_by_id": ("experts", lambda fact: fact.expert_id),
    "experts_by_tenant": ("experts", lambda fact: fact.tenant),
}
"""Groups that a snapshot keeps: of which kind, and the group of a fact."""

# Properties that stay as they are while the facts of their kind do.
_KEPT: Final = {
    "tenants_by_slug": "tenants",
    "bases_by_digest": "bases",
    "licenses_by_key": "licenses",
    "deployments_by_name": "deployments",
    "experts_by_dataset": "experts",
    **{name: kind for name, (kind, _) in GROUPS.items()},
}


class Snapshot(Fact):
    """All facts of one epoch."""

    epoch: Count
    published_at_us: AtUs
    vocabulary_version: str
    engine_version: str = ENGINE_VERSION
    # Left out where it is the first, so that snapshots of earlier releases keep their bytes and digests.
    format: SnapshotFormat = Field(default=1, exclude_if=lambda form: form == 1)
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
        for kind, (_, identity) in KINDS.items():
            self.__dict__[kind] = as_set(getattr(self, kind), identity, kind)
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:  # noqa: ARG002 - frozen all the way down
        """A copy with some fields replaced, checked and put into canonical form like any other.

        Pydantic's own would carry the remembered digest over to the changed copy.
        """
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate({**fields, **(update or {})})

    @classmethod
    def of_facts(cls, head: Mapping[str, Any], kinds: Mapping[str, tuple[Fact, ...]]) -> Snapshot:
        """A snapshot of facts that were each checked before and are in canonical order.

        Args:
            head: the other fields; ``engine_version`` and ``format`` may be left out.
            kinds: facts by kind; a kind that is left out has none.
        """
        none: dict[str, tuple[Fact, ...]] = dict.fromkeys(KINDS, ())
        return cls.model_construct(**{"engine_version": ENGINE_VERSION, "format": 1, **head, **none, **kinds})

    def changed(self, head: Mapping[str, Any], edits: Edits) -> Snapshot:
        """The snapshot that differs from this one in its head and in these facts; all else is shared.

        What was computed of this one (tree, groups) is carried over and amended, not computed anew.

        Args:
            head: fields of the head that are otherwise.
            edits: facts that come, go or are otherwise; their values were checked before.
        """
        kinds: dict[str, tuple[Fact, ...]] = {kind: getattr(self, kind) for kind in KINDS}
        of_kind = {kind: named(edits, kind) for kind in {kind for kind, _ in edits}}
        for kind, some in of_kind.items():
            kinds[kind] = amended_set(kinds[kind], KINDS[kind][1], some)
        new = type(self).of_facts({**self.head(), "format": self.format, **head}, kinds)
        known = self.__dict__
        if "tree" in known:
            new.__dict__["tree"] = _amended_tree(self.tree, edits)
        for name, (kind, group_of) in GROUPS.items():
            if name in known and kind in of_kind:
                identity = KINDS[kind][1]
                before = getattr(self, kind)
                groups = amended_groups(known[name], before, identity, group_of, of_kind[kind])
                new.__dict__[name] = groups
        for name, kind in _KEPT.items():
            if name in known and kind not in of_kind:
                new.__dict__[name] = known[name]
        if "upcoming" in known:
            turns = {kind: amended_turns(kind, getattr(self, kind), of_kind.get(kind, {})) for kind in WORDS}
            new.__dict__["upcoming"] = later_turns(self.upcoming, turns.values(), new.published_at_us)
        return new

    def fact(self, kind: str, identity: str) -> Fact | None:
        """The fact of a kind that is called so, or None."""
        facts: tuple[Fact, ...] = getattr(self, kind)
        return found(facts, KINDS[kind][1], identity)

    def to_json(self) -> bytes:
        """The canonical bytes (RFC 8785) of the whole snapshot."""
        parts = {name: canonical_bytes(one) for name, one in self.head().items()}
        for kind in KINDS:
            parts[kind] = b"[" + b",".join(map(fact_bytes, getattr(self, kind))) + b"]"
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
            raise malformed(error) from error
        except ProductError as error:
            raise MalformedSnapshot(
                "The snapshot is not canonical JSON. Ask the register for it again.", reason=error.code
            ) from error
        return snapshot if expect_digest is None else snapshot.checked(expect_digest)

    def checked(self, expect_digest: str) -> Self:
        """This snapshot, if it is the published one.

        Raises:
            SnapshotMismatch: its digest is another.
        """
        if self.digest != expect_digest:
            raise SnapshotMismatch(
                "The snapshot is not the published one. Do not serve from it; ask the register for it again.",
                expected=expect_digest,
                actual=self.digest,
                epoch=self.epoch,
            )
        return self

    @cached_property
    def leaves(self) -> tuple[bytes, ...]:
        """The Merkle leaves: the head of the snapshot, then one per fact, in canonical order."""
        facts = [leaf_bytes(kind, fact_bytes(fact)) for kind in KINDS for fact in getattr(self, kind)]
        return (self._head_leaf(), *facts)

    def head(self) -> dict[str, Any]:
        """What a snapshot says beside its facts."""
        head = {
            "epoch": self.epoch,
            "published_at_us": self.published_at_us,
            "vocabulary_version": self.vocabulary_version,
            "engine_version": self.engine_version,
        }
        return head if self.format == 1 else {**head, "format": self.format}

    def _head_leaf(self) -> bytes:
        return canonical_bytes({"kind": "snapshot", **self.head()})

    @cached_property
    def tree(self) -> trie.Node | None:
        """The trie over the facts, which the digest of ``format`` 2 rests on; None without facts."""
        with no_cycles_sought():
            entries: dict[int, bytes] = {}
            for kind, (_, identity) in KINDS.items():
                named = ((identity(fact), fact_bytes(fact)) for fact in getattr(self, kind))
                entries.update(tree_entries(kind, named))
            return trie.grown(entries)

    @cached_property
    def digest(self) -> str:
        """The root over head and facts, in the form that ``format`` names."""
        if self.format == 1:
            return merkle_root(self.leaves)
        head = trie.leaf_digest(self._head_leaf())
        root = head if self.tree is None else trie.node_digest(head, self.tree.digest)
        return "sha256:" + root.hex()

    def prove(self, kind: str, identity: str) -> tuple[bytes, InclusionProof]:
        """Shows that one fact is part of this snapshot: its leaf and the proof up to ``digest``.

        Raises:
            MalformedSnapshot: there is no such fact.
        """
        fact = self.fact(kind, identity) if kind in KINDS else None
        if fact is None:
            raise MalformedSnapshot("The snapshot holds no such fact.", kind=kind, identity=identity)
        leaf = leaf_bytes(kind, fact_bytes(fact))
        if self.format == 1:
            return leaf, prove_inclusion(self.leaves, self.leaves.index(leaf))
        steps = trie.steps_to(self.tree, trie.key_of(leaf_name(kind, identity))) or []
        head = trie.leaf_digest(self._head_leaf())
        return leaf, trie.as_inclusion([*steps, (head, True)])

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
        return grouped(self.consents, GROUPS["consents_by_expert"][1])

    @cached_property
    def consents_by_dataset(self) -> dict[str, tuple[ConsentFact, ...]]:
        """Consents about datasets by dataset id."""
        return grouped(self.consents, GROUPS["consents_by_dataset"][1])

    @cached_property
    def grants_by_expert(self) -> dict[str, tuple[GrantFact, ...]]:
        """Grants by expert id."""
        return grouped(self.grants, GROUPS["grants_by_expert"][1])

    @cached_property
    def upcoming(self) -> tuple[Turn, ...]:
        """When consents and grants that were given begin or end after the publication, soonest first."""
        turns = [turn for kind in WORDS for word in getattr(self, kind) for turn in turns_of(kind, word)]
        return tuple(sorted(turn for turn in turns if turn[0] > self.published_at_us))

    @cached_property
    def experts_by_id(self) -> dict[str, tuple[ExpertFact, ...]]:
        """Expert versions by expert id."""
        return grouped(self.experts, GROUPS["experts_by_id"][1])

    @cached_property
    def experts_by_tenant(self) -> dict[str, tuple[ExpertFact, ...]]:
        """Expert versions by owner."""
        return grouped(self.experts, GROUPS["experts_by_tenant"][1])

    @cached_property
    def experts_by_dataset(self) -> dict[str, tuple[ExpertFact, ...]]:
        """Expert versions by each dataset that they were trained on."""
        pairs = [(dataset.id, expert) for expert in self.experts for dataset in expert.datasets]
        groups: dict[str, list[ExpertFact]] = {}
        for dataset_id, expert in pairs:
            groups.setdefault(dataset_id, []).append(expert)
        return {name: tuple(group) for name, group in groups.items()}


def malformed(error: ValidationError) -> MalformedSnapshot:
    """The refusal of what is not even of the right shape, with the place where it is wrong."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(step) for step in first["loc"]) or "document"
    return MalformedSnapshot(
        f"The snapshot is malformed at {place}: {first['msg']}. Ask the register for it again.", place=place
    )


def _amended_tree(tree: trie.Node | None, edits: Edits) -> trie.Node | None:
    for (kind, identity), fact in edits.items():
        key = trie.key_of(leaf_name(kind, identity))
        if fact is None:
            tree = trie.without(tree, key)
        else:
            tree = trie.put(tree, key, trie.leaf_digest(leaf_bytes(kind, fact_bytes(fact))))
    return tree

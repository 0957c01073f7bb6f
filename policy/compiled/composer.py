# SPDX-License-Identifier: Apache-2.0
"""Who may serve a deployment together, answered from a compiled snapshot.

``Compiled.compose`` answers as ``policy.deciding.composition`` does, in the fields that servers run by: who
is a member, what they owe, how what runs is called and until when it holds. It gives no reasons; whoever
wants to know why asks the other. Everything that does not depend on the question is laid out as arrays when
the snapshot is compiled, and nothing is remembered from one question to the next, so that one compiled
snapshot serves any number of threads. Integers and bits only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

import numpy as np

from model_core.packing.canonical import canonical_bytes, digest_bytes
from policy.compiled import licensing, spaces
from policy.compiled.ends import first_end
from policy.compiled.licensing import Licensing, UseClass
from policy.compiled.settling import settle
from policy.compiled.spaces import FOREVER_US, Spaces
from policy.compiled.words import Flags, is_understood
from policy.deciding.members import Member, what_runs
from policy.deciding.questions import Asked, Question, resolve
from policy.deciding.reasons import Obligation
from policy.errors import UnknownVocabulary
from policy.facts.snapshot import ExpertFact, Snapshot
from policy.facts.terms import ANY, ENGINE_VERSION, Verdict
from policy.facts.vocabulary import vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class Composed:
    """Base and members in canonical order, without the reasons; see ``policy.deciding.composition``.

    Attributes:
        deployment: that was asked about, None for a use spelled out.
        tenant: consumer.
        base_digest: of the base below.
        epoch: of the snapshot.
        at_us: the moment that was asked about.
        verdict: ``deny`` where nothing at all may answer.
        members: by bundle digest.
        dropped: bundle digests of permitted versions that ``drop_by_rule`` left out.
        top_k: how many experts run, the public one counted.
        top_k_asked: how many were asked for.
        digest: names base, members and router.
        obligations: of base and members, in canonical order.
        valid_until_us: first moment at which a member has to leave; None: none within this epoch.
    """

    deployment: str | None
    tenant: str
    base_digest: str
    epoch: int
    at_us: int
    verdict: Verdict
    members: tuple[Member, ...]
    dropped: tuple[str, ...]
    top_k: int
    top_k_asked: int
    digest: str
    obligations: tuple[Obligation, ...]
    valid_until_us: int | None


class Compiled:
    """One snapshot, laid out for questions.

    Args:
        snapshot: the facts.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._understood = _is_known(snapshot)
        self._experts = len(snapshot.experts)
        self._consumers = {fact.slug for fact in snapshot.tenants if fact.status == "active"}
        self._members = [_member(fact) for fact in snapshot.experts]
        self._quoted = [canonical_bytes(fact.bundle_digest) for fact in snapshot.experts]
        self._number_of = {fact.bundle_digest: n for n, fact in enumerate(snapshot.experts)}
        self._numbers_of: dict[str, list[int]] = {}
        for number, fact in enumerate(snapshot.experts):
            self._numbers_of.setdefault(fact.expert_id, []).append(number)
            self._numbers_of.setdefault(fact.bundle_digest, []).append(number)
        self._in_standing = _in_standing(snapshot) if self._understood else {}
        if self._understood:
            self._spaces: Spaces = spaces.lay_out(snapshot)
            words = vocabulary(snapshot.vocabulary_version)
            self._licensing: Licensing = licensing.lay_out(snapshot, words.purposes)

    def compose(self, asked: Asked) -> Composed:
        """What ``policy.deciding.composition.compose`` says, without its reasons."""
        use = self._use(asked)
        if use is None:
            return self._denied(asked)
        passed = self._pass(asked, use)
        members = passed.experts
        if asked.candidates != ANY:
            members &= self._flags(n for name in asked.candidates for n in self._numbers_of.get(name, ()))
        if asked.members is not None:
            number_of = self._number_of
            members &= self._flags(number_of[name] for name in asked.members if name in number_of)
        settled = settle(self.snapshot, asked, use, members)
        if settled is None:
            return self._denied(asked)
        members[settled] = False
        ends_us = first_end(self._spaces, asked.at_us, members, passed.permits, passed.forbids)
        owed = self._licensing.owed_by(use, members, asked.base_digest)
        return self._composed(
            asked,
            "permit",
            members.tobytes(),
            dropped=sorted(self.snapshot.experts[number].bundle_digest for number in settled),
            obligations=tuple(compress(self._licensing.obligations, owed.tobytes())),
            valid_until_us=ends_us if ends_us < FOREVER_US else None,
        )

    def deployment(self, name: str, at_us: int) -> Composed:
        """What a deployment runs at a moment.

        Raises:
            UnknownDeployment: the snapshot does not hold it.
        """
        return self.compose(resolve(self.snapshot, Question(deployment=name, at_us=at_us)))

    def permitted(self, asked: Asked) -> tuple[str, ...]:
        """Bundle digests of all versions whose five gates are open, whoever is a candidate or was let in."""
        use = self._use(asked)
        if use is None:
            return ()
        return tuple(compress(self._number_of, self._pass(asked, use).experts.tobytes()))

    def moments_us(self, asked: Asked) -> list[int]:
        """The moments at which a consent or grant that speaks to a use begins or is over, rising.

        Between two of them time changes nothing about the answer.
        """
        if self._use(asked) is None:
            return []
        moments: set[int] = set()
        for space in (self._spaces.permits, self._spaces.forbids):
            here = space.speaking(asked)
            moments.update(space.from_us[here].tolist(), space.until_us[here].tolist())
        return sorted(moments)

    def _use(self, asked: Asked) -> UseClass | None:
        """What the licenses say to a use; None where nothing at all may answer it."""
        if asked.tenant not in self._consumers or asked.base_digest not in self._in_standing:
            return None
        if not is_understood(self.snapshot.vocabulary_version, asked.action, asked.purpose, asked.region):
            return None
        use = self._licensing.classes[asked.action, asked.commercial, asked.purpose]
        return use if asked.base_digest in use.bases else None

    def _pass(self, asked: Asked, use: UseClass) -> _Passed:
        """Sends all experts through the gates at once."""
        here = self._spaces
        experts = self._in_standing[asked.base_digest] & use.licensed
        permits = here.permits.speaking(asked)
        met = here.needs.at(here.permits.slots_of(permits & here.permits.live(asked.at_us)))
        experts[here.needs.expert[~met]] = False
        forbids = here.forbids.speaking(asked)
        hit = here.watches.at(here.forbids.slots_of(forbids & here.forbids.live(asked.at_us)))
        experts[here.watches.expert[hit]] = False
        return _Passed(experts, permits, forbids)

    def _flags(self, numbers: Iterable[int]) -> Flags:
        flags = np.zeros(self._experts, np.bool_)
        flags[np.fromiter(numbers, np.int64)] = True
        return flags

    def _denied(self, asked: Asked) -> Composed:
        return self._composed(asked, "deny", bytes(self._experts))

    def _composed(
        self,
        asked: Asked,
        verdict: Verdict,
        members: bytes,
        *,
        dropped: Sequence[str] = (),
        obligations: tuple[Obligation, ...] = (),
        valid_until_us: int | None = None,
    ) -> Composed:
        serving = tuple(compress(self._members, members))
        top_k = min(asked.top_k, len(serving) + 1)
        named = canonical_bytes(what_runs(asked.base_digest, (), top_k))
        if serving:  # the members' digests were quoted beforehand
            quoted = b",".join(compress(self._quoted, members))
            named = named.replace(b'"experts":[]', b'"experts":[%b]' % quoted)
        return Composed(
            deployment=asked.deployment,
            tenant=asked.tenant,
            base_digest=asked.base_digest,
            epoch=self.snapshot.epoch,
            at_us=asked.at_us,
            verdict=verdict,
            members=serving,
            dropped=tuple(dropped),
            top_k=top_k,
            top_k_asked=asked.top_k,
            digest=digest_bytes(named),
            obligations=obligations,
            valid_until_us=valid_until_us,
        )


def compile_snapshot(snapshot: Snapshot) -> Compiled:
    """Lays a snapshot out for questions; see ``Compiled``."""
    return Compiled(snapshot)


class _Passed(NamedTuple):
    """The experts whose gates are open, and which permits and forbids speak to the use at any time."""

    experts: Flags
    permits: Flags
    forbids: Flags


def _is_known(snapshot: Snapshot) -> bool:
    """Whether this engine and this installation's words are those of a snapshot."""
    try:
        vocabulary(snapshot.vocabulary_version)
    except UnknownVocabulary:
        return False
    return snapshot.engine_version == ENGINE_VERSION


def _in_standing(snapshot: Snapshot) -> dict[str, Flags]:
    """By active base, the experts whose owner, state and lineage stand in nobody's way."""
    owners = {fact.slug for fact in snapshot.tenants if fact.status == "active"}
    experts = snapshot.experts
    sound = [fact.tenant in owners and fact.state == "listed" and _has_lineage(fact) for fact in experts]
    flags = np.array(sound, np.bool_)
    return {
        base.base_digest: flags
        & np.array([fact.base_digest == base.base_digest for fact in experts], np.bool_)
        for base in snapshot.bases
        if base.status == "active"
    }


def _has_lineage(expert: ExpertFact) -> bool:
    """Whether each dataset is named, its consent stands, and its owner is asked."""
    return bool(expert.datasets) and all(
        dataset.consent == "separate"
        or (dataset.consent == "with_expert" and dataset.tenant == expert.tenant)
        for dataset in expert.datasets
    )


def _member(fact: ExpertFact) -> Member:
    return Member(
        bundle_digest=fact.bundle_digest,
        expert_id=fact.expert_id,
        name=fact.name,
        tenant=fact.tenant,
        price_micro_per_1k_tokens=fact.price_micro_per_1k_tokens,
    )

# SPDX-License-Identifier: Apache-2.0
"""Asks logged questions of two snapshots and counts whose answers differ.

Every logged decision is asked again, at one moment: that of the change. Nothing is sampled. Counts are kept
by expert and by consumer, and the log comes in pages, so memory grows with tenants and experts and not with
the log. Knows neither SQL nor money.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from policy.compiled.composer import Composed, compile_snapshot
from policy.compiled.replay import Replayed, replay
from policy.deciding.members import Member
from policy.deciding.questions import Question
from policy.facts.snapshot import DeploymentFact, Snapshot
from policy.preview.report import ConsumerImpact, DeploymentImpact, Effect

Logged = tuple[str, Question]
"""The consumer whose question it was, and the question."""


@dataclass(kw_only=True, slots=True)
class _Consumer:
    decisions: int = 0
    changed: int = 0
    gained: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)


class Asking:
    """Two snapshots side by side.

    Args:
        before: in force.
        after: the draft, or what was published.
        at_us: the moment at which both are asked.
    """

    def __init__(self, before: Snapshot, after: Snapshot, at_us: int) -> None:
        self._before, self._after = compile_snapshot(before), compile_snapshot(after)
        self.at_us = at_us
        self._consumers: dict[str, _Consumer] = {}
        self.decisions = self.changed = self.stopped = self.begun = 0
        self.gained: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.members: dict[str, Member] = {}

    def ask(self, page: Sequence[Logged]) -> None:
        """Asks a page of logged questions and counts."""
        questions = [question.model_copy(update={"at_us": self.at_us}) for _, question in page]
        for (tenant, _), told in zip(page, replay(self._before, self._after, questions), strict=True):
            self._count(tenant, told)

    def deployments(self) -> list[DeploymentImpact]:
        """What becomes of every live deployment, by name."""
        names = sorted(
            set(self._before.snapshot.deployments_by_name) | set(self._after.snapshot.deployments_by_name)
        )
        questions = [Question(at_us=self.at_us, deployment=name) for name in names]
        return [self._deployment(told) for told in replay(self._before, self._after, questions)]

    def consumers(self) -> tuple[ConsumerImpact, ...]:
        """Consumers with a question whose answer differs, by tenant."""
        return tuple(
            ConsumerImpact(
                tenant=tenant,
                decisions=one.decisions,
                decisions_changed=one.changed,
                gained=tuple(sorted(one.gained)),
                lost=tuple(sorted(one.lost)),
            )
            for tenant, one in sorted(self._consumers.items())
            if one.changed
        )

    def _asked(self, name: str) -> DeploymentFact:
        """The deployment as it would be, or as it is where it ends."""
        there = self._after.snapshot.deployments_by_name
        return there[name] if name in there else self._before.snapshot.deployments_by_name[name]

    def _count(self, tenant: str, told: Replayed) -> None:
        consumer = self._consumers.setdefault(tenant, _Consumer())
        consumer.decisions += 1
        self.decisions += 1
        if told.flips:
            if _answered(told.after):
                self.begun += 1
            else:
                self.stopped += 1
        if not (told.gained or told.lost or told.flips):
            return
        consumer.changed += 1
        self.changed += 1
        for members, counted, named in (
            (told.gained, self.gained, consumer.gained),
            (told.lost, self.lost, consumer.lost),
        ):
            for member in members:
                counted[member.expert_id] += 1
                named.add(member.expert_id)
                self.members[member.expert_id] = member

    def _deployment(self, told: Replayed) -> DeploymentImpact:
        shown = self._asked(str(told.question.deployment))
        had, has = _ids(told.before), _ids(told.after)
        for member in (*told.gained, *told.lost):
            self.members[member.expert_id] = member
        asked = shown.top_k
        return DeploymentImpact(
            deployment=str(told.question.deployment),
            tenant=shown.tenant,
            effect=_effect(told),
            below_asked=len(has) + 1 < asked <= len(had) + 1,
            before=had,
            after=has,
            gained=tuple(sorted(one.expert_id for one in told.gained)),
            lost=tuple(sorted(one.expert_id for one in told.lost)),
            top_k_asked=asked,
            quality=(),
        )


def _effect(told: Replayed) -> Effect:
    if told.before is None:
        return "begins"
    if told.after is None:
        return "ends"
    if told.flips:
        return "heals" if _answered(told.after) else "breaks"
    if told.gained and told.lost:
        return "changes"
    if told.gained:
        return "grows"
    return "shrinks" if told.lost else "stays"


def _answered(composed: Composed | None) -> bool:
    return composed is not None and composed.verdict == "permit"


def _ids(composed: Composed | None) -> tuple[str, ...]:
    return () if composed is None else tuple(member.expert_id for member in composed.members)

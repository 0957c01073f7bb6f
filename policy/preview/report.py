# SPDX-License-Identifier: Apache-2.0
"""What a change would do, or a publication did, as one document with a digest.

Frozen values; amounts are micro-credits, quality is in millionths of a metric's unit, everything counts in
integers. What nobody measured is named as unknown and never guessed.
"""

from __future__ import annotations

from typing import Literal

from model_core.packing.canonical import canonical_bytes, digest_bytes
from policy.records.record import Record

Effect = Literal["begins", "ends", "breaks", "heals", "shrinks", "grows", "changes", "stays"]


class ExpertImpact(Record):
    """Who would use an expert that did not, and the reverse; of logged questions and of live deployments."""

    expert_id: str
    name: str
    tenant: str
    decisions_gained: int
    decisions_lost: int
    deployments_gained: tuple[str, ...]
    deployments_lost: tuple[str, ...]


class ConsumerImpact(Record):
    """Which experts a consumer's logged questions would gain and lose."""

    tenant: str
    decisions: int
    decisions_changed: int
    gained: tuple[str, ...]
    lost: tuple[str, ...]


class QualityImpact(Record):
    """What the experts that leave a deployment are worth to it, by their leave-one-out values.

    Attributes:
        metric: what was measured.
        cost_micro: how much worse the metric gets, in millionths of its unit; less than nothing is better.
            A sum of single values: how experts make up for each other is not in it.
        evaluations: ids of the measurements that are summed.
        unknown: experts that nobody measured this for, by id; they are not in the sum.
    """

    metric: str
    cost_micro: int
    evaluations: tuple[str, ...]
    unknown: tuple[str, ...]


class DeploymentImpact(Record):
    """What becomes of one live deployment.

    ``breaks`` answers nothing any more, ``ends`` exists no longer; ``below_asked`` has fewer experts than its
    tokens ask for and had enough before.
    """

    deployment: str
    tenant: str
    effect: Effect
    below_asked: bool
    before: tuple[str, ...]
    after: tuple[str, ...]
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    top_k_asked: int
    quality: tuple[QualityImpact, ...]


class MoneyImpact(Record):
    """What an expert earned in a deployment, and what the same tokens would have earned after the change."""

    deployment: str
    consumer: str
    expert_id: str
    owner: str
    ppm_tokens: int
    before_micro: int
    after_micro: int


class ImpactReport(Record):
    """The whole of it.

    Attributes:
        change_id: of the draft, None for a publication or for what was only supposed.
        change_digest: the draft that was looked at; empty where there is none.
        epoch: of the publication that was looked at, None for a draft.
        epoch_base: in force before it.
        at_us: the moment at which both were asked: logged questions are asked as if they came again then.
        usage_since_us: from where on usage was counted.
        decisions: logged decisions that were asked again: all of them.
        decisions_changed: those whose members differ.
        decisions_stopped: those that would be answered and are no more.
        decisions_begun: the reverse.
        experts: by id, those that anybody gains or loses.
        consumers: by tenant, those with a question that changes.
        deployments: by name, all live ones.
        money: lines that change; what a newcomer earns is not known.
        revenue_micro: earned by experts within the usage counted.
        revenue_after_micro: the same after the change.
    """

    change_id: str | None = None
    change_digest: str = ""
    epoch: int | None = None
    epoch_base: int
    at_us: int
    usage_since_us: int
    engine_version: str
    decisions: int
    decisions_changed: int
    decisions_stopped: int
    decisions_begun: int
    experts: tuple[ExpertImpact, ...]
    consumers: tuple[ConsumerImpact, ...]
    deployments: tuple[DeploymentImpact, ...]
    money: tuple[MoneyImpact, ...]
    revenue_micro: int
    revenue_after_micro: int

    def to_json(self) -> bytes:
        """The canonical bytes."""
        return canonical_bytes(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """Names this report."""
        return digest_bytes(self.to_json())

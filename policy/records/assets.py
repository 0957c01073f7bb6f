# SPDX-License-Identifier: Apache-2.0
"""Bases, versions of experts, what they are worth, and deployments."""

from __future__ import annotations

from model_core.packing.manifest import BaseManifest, ExpertManifest
from policy.deciding.composition import Composition
from policy.facts.snapshot import DeploymentFact
from policy.facts.terms import ExpertState
from policy.records.record import Record


class BaseRecord(Record):
    """A registered base."""

    base_digest: str
    name: str
    license: str
    status: str
    manifest: BaseManifest
    added_at_us: int


class ExpertRecord(Record):
    """One version of an expert; ``license`` and price are those of its latest listing."""

    expert_id: str
    name: str
    tenant: str
    version: int
    bundle_digest: str
    base_digest: str
    state: ExpertState
    license: str
    price_micro_per_1k_tokens: int
    dataset_ids: tuple[str, ...]
    job_id: str | None
    admitted_at_us: int
    manifest: ExpertManifest


class EvaluationRecord(Record):
    """What leaving one expert out costs, as somebody measured it, with the digest of the evidence.

    ``value_micro`` is how much worse the metric gets without the expert, in millionths of its unit;
    ``deployment`` says where it was measured, ``*`` outside any.
    """

    id: str
    expert_id: str
    tenant: str
    deployment: str
    metric: str
    value_micro: int
    evidence_digest: str
    principal_id: str
    at_us: int


class DeploymentRecord(DeploymentFact):
    """A deployment with what it runs at this moment, and why; ``version`` counts its published forms."""

    composition: Composition
    version: int = 0

# SPDX-License-Identifier: Apache-2.0
"""Decides."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from policy.reasons import NearestMiss, Obligation, Reason
from policy.snapshot import ExpertFact, Snapshot
from policy.terms import AtUs, Count, OnConflict, Outcome, Verdict


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Question(_Value):
    """What is asked: the use of a deployment, or a use spelled out, at one moment.

    With ``deployment`` its fact fills every field that is None here; explicit fields win, so that "what if"
    questions need no copy of a deployment. Without it tenant, base_digest, purpose, region and commercial
    have to be given.
    """

    at_us: AtUs
    deployment: str | None = None
    tenant: str | None = None
    base_digest: str | None = None
    action: str | None = None
    purpose: str | None = None
    region: str | None = None
    commercial: bool | None = None
    candidates: Literal["*"] | tuple[str, ...] | None = None
    top_k: Count | None = None
    on_conflict: OnConflict | None = None


class LicenseChoice(_Value):
    """Which branch of a license expression a permit rests on. ``subject``: expert, base or dataset id."""

    subject: str
    expression: str
    chosen: tuple[str, ...]


class Decision(_Value):
    """Permit or deny for one expert version, with everything needed to understand and replay it.

    ``valid_until_us`` of a permit is exact: it holds at every moment before and no longer at that one
    (None: as long as the epoch). A denial stands until another epoch or moment is asked about.
    ``input_digest`` covers snapshot, use and expert, not the moment.
    """

    expert_id: str
    bundle_digest: str
    name: str
    tenant: str
    verdict: Verdict
    outcome: Outcome
    reasons: tuple[Reason, ...]
    nearest_miss: tuple[NearestMiss, ...] = ()
    obligations: tuple[Obligation, ...] = ()
    licenses: tuple[LicenseChoice, ...] = ()
    valid_until_us: AtUs | None = None
    at_us: AtUs
    epoch: Count
    engine_version: str
    snapshot_digest: str
    input_digest: str


def decide(snapshot: Snapshot, question: Question, expert: ExpertFact | str) -> Decision:
    """Decides whether one expert version may serve one use at one moment."""
    raise NotImplementedError

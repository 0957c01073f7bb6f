# SPDX-License-Identifier: Apache-2.0
"""Composes."""

from __future__ import annotations

from policy.decision import Decision, Question, _Value
from policy.reasons import Obligation
from policy.snapshot import Snapshot
from policy.terms import AtUs, Count, Micro, Verdict


class Member(_Value):
    """One expert version that serves in a composition."""

    bundle_digest: str
    expert_id: str
    name: str
    tenant: str
    price_micro_per_1k_tokens: Micro


class Composition(_Value):
    """Base + permitted expert versions in canonical order (by bundle digest), and why.

    ``top_k`` is what runs: ``top_k_asked``, at most the members and the public expert. ``digest`` names
    base, members and router. ``verdict`` is deny only where ``strict`` met a conflict (the public base
    alone may still answer). ``valid_until_us``: the first moment at which a member has to leave.
    """

    deployment: str | None
    tenant: str
    base_digest: str
    epoch: Count
    at_us: AtUs
    verdict: Verdict
    members: tuple[Member, ...]
    dropped: tuple[str, ...] = ()
    top_k: Count
    top_k_asked: Count
    digest: str
    obligations: tuple[Obligation, ...] = ()
    decisions: tuple[Decision, ...]
    valid_until_us: AtUs | None
    snapshot_digest: str
    engine_version: str


def compose(snapshot: Snapshot, question: Question) -> Composition:
    """Decides about every candidate and composes those that may serve together."""
    raise NotImplementedError

# SPDX-License-Identifier: Apache-2.0
"""What a composition is made of: its members, and the digest that names what runs.

Values only; who becomes a member is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model_core.packing.canonical import digest_of
from policy.deciding.questions import Value
from policy.facts.terms import Micro


class Member(Value):
    """One expert version that serves in a composition."""

    bundle_digest: str
    expert_id: str
    name: str
    tenant: str
    price_micro_per_1k_tokens: Micro


def what_runs(base_digest: str, bundle_digests: Sequence[str], top_k: int) -> dict[str, Any]:
    """The document whose digest names what runs: base, experts (in any order) and router.

    The router's version changes whenever equal bundles would be routed otherwise (decision 0020: 2).
    """
    return {
        "base": base_digest,
        "experts": sorted(bundle_digests),
        "router": {"top_k": top_k, "variant": "gated", "version": 2},
    }


def composition_digest(base_digest: str, bundle_digests: Sequence[str], top_k: int) -> str:
    """The digest that names what runs: base, experts (in any order) and router."""
    return digest_of(what_runs(base_digest, bundle_digests, top_k))

# SPDX-License-Identifier: Apache-2.0
"""What a settlement says to each tenant, as documents that come out the same however the lines came in.

Pure: knows neither where the lines were read nor what becomes of the documents.
"""

from __future__ import annotations

from typing import Any

from model_core.packing.canonical import canonical_bytes
from policy.billing import ledger
from tenants.roles import PLATFORM_TENANT


class Statements:
    """Collects what a settlement says to each tenant.

    Args:
        settlement_id: which.
        at_us: when it was made.
    """

    def __init__(self, settlement_id: str, at_us: int) -> None:
        self._head = {
            "schema_version": 1,
            "settlement": settlement_id,
            "at_us": at_us,
            "pricing_version": ledger.PRICING_VERSION,
        }
        self._parts: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def add_total(self, tenant: str, deployment: str, prompt: int, completion: int, requests: int) -> None:
        """What a tenant used of a deployment: tokens of both kinds, and requests."""
        row = {
            "deployment": deployment,
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "requests": requests,
        }
        self._part(tenant, "usage").append(row)

    def add_line(self, tenant: str, owner: str, line: dict[str, Any], amount: int, fee: int) -> None:
        """A line that a tenant pays and an owner earns, less the platform's fee; amounts in micro-credits."""
        self._part(tenant, "charges").append({**line, "owner": owner, "amount_micro": amount})
        if amount:
            earned = {**line, "consumer": tenant, "amount_micro": amount - fee}
            self._part(owner, "earnings").append(earned)
        if fee:
            self._part(PLATFORM_TENANT, "fees").append({**line, "consumer": tenant, "amount_micro": fee})

    def documents(self) -> dict[str, dict[str, Any]]:
        """What is said to each tenant, by slug."""
        return {tenant: self._document(tenant, parts) for tenant, parts in self._parts.items()}

    def _document(self, tenant: str, parts: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        # Databases return groups in any order; the canonical bytes of a line are its place.
        ordered = {name: sorted(rows, key=canonical_bytes) for name, rows in parts.items()}
        sums = {name: sum(row.get("amount_micro", 0) for row in rows) for name, rows in ordered.items()}
        earned = sums["earnings"] + sums["fees"]
        return {
            **self._head,
            "tenant": tenant,
            **ordered,
            "charged_micro": sums["charges"],
            "earned_micro": earned,
            "net_micro": earned - sums["charges"],
        }

    def _part(self, tenant: str, name: str) -> list[dict[str, Any]]:
        empty: dict[str, list[dict[str, Any]]] = {"usage": [], "charges": [], "earnings": [], "fees": []}
        return self._parts.setdefault(tenant, empty)[name]

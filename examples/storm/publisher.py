# SPDX-License-Identifier: Apache-2.0
"""Withdraws experts from under running streams and gives them back, over and over, as their owners do."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.client import MarketplaceClient
from examples.storm.town import Town, Ware, consent

# Each look is a request to the office, which has the withdrawal itself to carry out.
_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """One publication.

    Attributes:
        kind: ``withdraw`` or ``give``.
        name: of the expert.
        epoch: that it became.
        sent_us: wall time before the call.
        told_us: wall time after the answer: the commit lies before it.
    """

    kind: str
    name: str
    epoch: int
    sent_us: int
    told_us: int


class Publisher:
    """Everybody whose word it takes to withdraw an expert and to give it back.

    Args:
        connect: makes a client for a person's key.
        town: what was founded.
    """

    def __init__(self, connect: Callable[[str], MarketplaceClient], town: Town) -> None:
        self._town = town
        people = {"carol", "operator", *(ware.owner for ware in town.wares)}
        self._clients = {person: connect(town.keys[person]) for person in sorted(people)}
        # By expert name; None until somebody needs to know, for asking takes the office's time.
        self._consents: dict[str, str | None] = {**self._given()}
        self.acts: list[Act] = []

    def close(self) -> None:
        """Closes every connection."""
        for client in self._clients.values():
            client.close()

    def has(self, ware: Ware) -> bool:
        """Whether an expert is permitted at present."""
        return ware.name in self._consents

    def withdraw(self, ware: Ware) -> Act:
        """One act of the owner."""
        consent_id = self._consents.pop(ware.name) or self._given(ware.owner)[ware.name]
        return self._publish("withdraw", ware, ware.owner, "consents.withdraw", consent_id=consent_id)

    def give(self, ware: Ware) -> Act:
        """The owner proposes, compliance approves."""
        change = self._call(ware.owner, "changes.propose", title=f"Back: {ware.name}", items=[consent(ware)])
        fields = {"change_id": change["id"], "digest": change["digest"]}
        self._consents[ware.name] = None
        return self._publish("give", ware, "carol", "changes.approve", **fields)

    def wait_until_acknowledged(self, epoch: int, servers: int, *, timeout_s: float) -> bool:
        """Waits until so many servers run an epoch or a later one."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            told = self._call("operator", "epochs.acknowledgements", epoch=epoch)
            if sum(row["epoch"] >= epoch for row in told["servers"]) >= servers:
                return True
            time.sleep(_POLL_S)
        return False

    def _given(self, *owners: str) -> dict[str, str]:
        names = {ware.expert_id: ware.name for ware in self._town.wares}
        found: dict[str, str] = {}
        for owner in owners or sorted({ware.owner for ware in self._town.wares}):
            after: str | None = None
            while True:
                page = self._call(owner, "consents.list", limit=500, after=after)
                for row in page["items"]:
                    known = row["expert_id"] in names
                    if known and row["state"] == "given" and row["effect"] == "permit":
                        found[names[row["expert_id"]]] = row["id"]
                after = page.get("next")
                if after is None:
                    break
        return found

    def _publish(self, kind: str, ware: Ware, who: str, operation: str, **fields: Any) -> Act:
        sent_us = _now_us()
        told = self._call(who, operation, **fields)
        act = Act(kind=kind, name=ware.name, epoch=int(told["epoch"]), sent_us=sent_us, told_us=_now_us())
        self.acts.append(act)
        return act

    def _call(self, who: str, operation: str, **fields: Any) -> dict[str, Any]:
        key = None if operation.endswith((".list", ".acknowledgements")) else secrets.token_hex(12)
        return self._clients[who].call(operation, idempotency_key=key, **fields)


def _now_us() -> int:
    return time.time_ns() // 1000

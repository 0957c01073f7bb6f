# SPDX-License-Identifier: Apache-2.0
"""Makes the demo's tenants and keys, and lets each person act through a client of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.client import MarketplaceClient
from examples.demo.cast import CONSUMER, OWNERS
from examples.demo.house import House


@dataclass(frozen=True, kw_only=True)
class People:
    """Clients by what the person is.

    Attributes:
        operator: runs the platform.
        compliance: writes rules and approves what owners propose.
        reviewer: the second compliance person.
        auditor: reads.
        developer: of the consumer.
        owners: by tenant slug.
        developer_key: the developer's key, for streams with connections of their own.
    """

    operator: MarketplaceClient
    compliance: MarketplaceClient
    reviewer: MarketplaceClient
    auditor: MarketplaceClient
    developer: MarketplaceClient
    owners: dict[str, MarketplaceClient]
    developer_key: str

    def close(self) -> None:
        """Closes every connection."""
        for client in (self.operator, self.compliance, self.reviewer, self.auditor, self.developer):
            client.close()
        for client in self.owners.values():
            client.close()


def gather(house: House) -> People:
    """Creates tenants and one principal each, as the operator."""
    operator = house.client(house.operator_key())

    def key(tenant: str, name: str, *roles: str) -> str:
        answer = operator.call("keys.create", tenant=tenant, principal=name, roles=list(roles))
        return str(answer["secret"])

    for owner in OWNERS:
        operator.call("tenants.create", slug=owner.slug, title=owner.title, country="DE")
    operator.call("tenants.create", slug=CONSUMER, title="Acme Apps", country="DE")
    operator.call("ledger.budget", tenant=CONSUMER, limit_micro=1_000_000_000)
    developer_key = key(CONSUMER, "dana", "developer")
    return People(
        operator=operator,
        compliance=house.client(key("platform", "carol", "compliance")),
        reviewer=house.client(key("platform", "chidi", "compliance")),
        auditor=house.client(key("platform", "aya", "auditor")),
        developer=house.client(developer_key),
        owners={
            owner.slug: house.client(key(owner.slug, f"{owner.slug}-owner", "owner")) for owner in OWNERS
        },
        developer_key=developer_key,
    )


def agree(
    author: MarketplaceClient, approver: MarketplaceClient, title: str, items: list[dict[str, Any]]
) -> int:
    """Proposes a change and has somebody else approve it; the epoch that it became."""
    change = author.call("changes.propose", title=title, items=items)
    publication = approver.call("changes.approve", change_id=change["id"], digest=change["digest"])
    return int(publication["epoch"])

# SPDX-License-Identifier: Apache-2.0
"""Consents in the words of others: ODRL, for whoever keeps policies elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.operations.consents import ConsentId
from cluster.operations.scope import tenant_scope, unknown
from cluster.operations.table import READERS, Answer, Operation
from policy.cards.odrl_bounds import URN
from policy.cards.odrl_writing import policy_of
from policy.records.items import ConsentGive, ForbidUse
from tenants.roles import Principal

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class OdrlPolicy(Answer):
    """A consent as an ODRL 2.2 policy; read as a card it gives the same words."""

    policy: dict[str, Any]


def as_odrl(desk: Desk, principal: Principal, request: ConsentId) -> OdrlPolicy:
    """One consent, whatever has become of it since."""
    rows = desk.register.consents(tenant_scope(principal))
    found = [row for row in rows if row.id == request.consent_id]
    if not found:
        raise unknown("consent")
    (row,) = found
    kind: type[ConsentGive | ForbidUse] = ConsentGive if row.effect == "permit" else ForbidUse
    fields = {name: getattr(row, name) for name in kind.model_fields if hasattr(row, name)}
    about = f"dataset:{row.dataset_id}" if row.dataset_id is not None else f"expert:{row.expert_id}"
    policy = policy_of([kind.model_validate(fields)], uid=f"{URN}consent:{row.id}", target=f"{URN}{about}")
    return OdrlPolicy(policy=policy)


ROWS = (
    Operation(
        name="consents.odrl",
        method="GET",
        path="/consents/{consent_id}/odrl",
        roles=READERS,
        request=ConsentId,
        response=OdrlPolicy,
        run=as_odrl,
        summary="Writes a consent as an ODRL policy.",
        example={"consent_id": "cns_0198f0c2a1b37c4e8d5f60718293a4b5"},
    ),
)

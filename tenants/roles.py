# SPDX-License-Identifier: Apache-2.0
"""Roles and principals: who is asking. Pure values; knows neither keys nor SQL.

Compliance and operator roles exist in the platform tenant alone: a tenant that could hand them to itself
could approve its own widenings.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict

PLATFORM_TENANT: Final = "platform"


class Role(StrEnum):
    """What a key may do; the operation table names the roles each act needs."""

    OPERATOR = "operator"
    COMPLIANCE = "compliance"
    OWNER = "owner"
    DEVELOPER = "developer"
    AUDITOR = "auditor"


PLATFORM_ROLES: Final = frozenset({Role.OPERATOR, Role.COMPLIANCE})


class Principal(BaseModel):
    """A person or program of a tenant, as authenticated by one key.

    Attributes:
        id: stable over all keys of the principal; four-eyes checks compare it.
        tenant: slug of the tenant that the principal belongs to.
        roles: what this key grants, which may be less than another key of the same principal.
        key_id: the key that was used, empty where no key was involved.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    tenant: str
    name: str
    roles: frozenset[Role]
    key_id: str = ""

    def has(self, *roles: Role) -> bool:
        """Says whether the key carries at least one of these roles."""
        return not self.roles.isdisjoint(roles)

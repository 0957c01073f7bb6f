# SPDX-License-Identifier: Apache-2.0
"""What the pages of erasure look up: requests, copies, legal holds and letters."""

from __future__ import annotations

import asyncio
from typing import Any

from cluster.gateway.console.visit import Visit

Values = dict[str, Any]


async def erasures(visit: Visit) -> Values:
    """Erasures, holds and what one's own tenant has to know, as far as the person's roles open them."""
    found, held, told = await asyncio.gather(
        _items(visit, "erasures.list"), _items(visit, "holds.list"), _items(visit, "notifications.list")
    )
    return {"erasures": found, "holds": held, "letters": told, "may_decide": visit.may("erasures.approve")}


async def erasure(visit: Visit) -> Values:
    """One erasure with every copy."""
    fields = {"erasure_id": visit.request.path_params["erasure_id"]}
    found, me = await asyncio.gather(visit.call("erasures.show", **fields), visit.call("me.show"))
    asked_by_me = found["requested_by"] == me["principal_id"]
    return {"erasure": found, "asked_by_me": asked_by_me}


async def _items(visit: Visit, operation: str) -> list[dict[str, Any]]:
    if not visit.may(operation):
        return []
    items: list[dict[str, Any]] = (await visit.call(operation, limit=100))["items"]
    return items

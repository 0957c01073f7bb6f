# SPDX-License-Identifier: Apache-2.0
"""What the pages of review look up: changes with their reports, emergency stops, epochs that narrowed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from cluster.gateway.console.visit import Visit

Values = dict[str, Any]

#: States that a list of changes can be cut to, in the order of a change's life.
STATES = ("draft", "proposed", "scheduled", "approved", "rejected", "withdrawn", "revised", "failed")
_LAID_OPEN = ("proposed", "scheduled", "approved", "failed")


def expert_names(catalogue: dict[str, Any]) -> dict[str, str]:
    """What people call the experts of an answer of ``experts.list``, by id."""
    return {row["id"]: f"{row['tenant']}/{row['name']} v{row['version']}" for row in catalogue["items"]}


async def around(visit: Visit, found: dict[str, Any]) -> Values:
    """What stands around one change: its report, who runs it, and its edits as its author writes them."""
    change_id = found["id"]
    impact = acknowledged = None
    if found["state"] in _LAID_OPEN:
        impact, acknowledged = await asyncio.gather(
            visit.call("changes.impact", change_id=change_id),
            visit.call("changes.acknowledgements", change_id=change_id),
        )
    return {
        "impact": impact,
        "acknowledged": acknowledged,
        "document": json.dumps(found["items"], indent=1),
    }


async def stops(visit: Visit) -> Values:
    """Emergency stops, and whose signature may not be the second."""
    found, me = await asyncio.gather(
        visit.call("stops.list", limit=100, after=visit.query("after")), visit.call("me.show")
    )
    return {"stops": found["items"], "next": found["next"], "me": me["principal_id"]}


async def epoch(visit: Visit) -> Values:
    """What one publication did."""
    number = visit.request.path_params["epoch"]
    impact, catalogue = await asyncio.gather(
        visit.call("epochs.impact", epoch=number), visit.call("experts.list", limit=500)
    )
    return {"epoch": number, "impact": impact, "names": expert_names(catalogue)}

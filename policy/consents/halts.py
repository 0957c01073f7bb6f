# SPDX-License-Identifier: Apache-2.0
"""When every server had stopped what an epoch takes away: by its own word, or because its lease ran out.

A server that acknowledged a later epoch runs that one, so its word counts for every epoch before. One that
said nothing stops by itself when its lease ends. Knows nothing of what was taken away.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from policy.facts.terms import AtUs
from policy.records.epochs import Publication
from policy.tables import AcknowledgementRow, ServerRow


class Halt(BaseModel):
    """How one server came to run without what an epoch took away.

    Attributes:
        how: ``acknowledged`` by its own word, ``lease_ran_out`` without one, or ``pending``.
        by_us: at the latest from then on; None while pending.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    server_id: str
    how: Literal["acknowledged", "lease_ran_out", "pending"]
    by_us: AtUs | None


def halts(session: Session, publication: Publication, lease_us: int, now_us: int) -> tuple[Halt, ...]:
    """What is known of every server that was there when the epoch was published, by server id.

    Args:
        session: the open unit of work.
        publication: the epoch.
        lease_us: how long a server may serve without news.
        now_us: when this is asked.
    """
    first = (
        select(AcknowledgementRow.server_id, func.min(AcknowledgementRow.at_us))
        .where(AcknowledgementRow.epoch >= publication.epoch)
        .group_by(AcknowledgementRow.server_id)
    )
    said = {str(server): int(at_us) for server, at_us in session.execute(first)}
    ends_us = publication.at_us + lease_us
    found = []
    servers = select(ServerRow.server_id).where(ServerRow.first_at_us <= publication.at_us)
    for server_id in session.scalars(servers.order_by(ServerRow.server_id)):
        if server_id in said:
            found.append(Halt(server_id=server_id, how="acknowledged", by_us=said[server_id]))
        elif ends_us <= now_us:
            found.append(Halt(server_id=server_id, how="lease_ran_out", by_us=ends_us))
        else:
            found.append(Halt(server_id=server_id, how="pending", by_us=None))
    return tuple(found)

# SPDX-License-Identifier: Apache-2.0
"""Who runs what was published: each model host's word for an epoch, and for the change that it carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cluster.operations.changes import ChangeId, visible_change
from cluster.operations.epochs import EpochNumber
from cluster.operations.table import ANYONE, Answer, Operation
from policy.records.epochs import AcknowledgementRecord, ServerRecord
from tenants.roles import Principal

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class Acknowledgements(Answer):
    """Which servers run what an epoch permits, and where every server stands."""

    epoch: int
    items: tuple[AcknowledgementRecord, ...]
    servers: tuple[ServerRecord, ...]


class ServerState(Answer):
    """Where one model host stands with a change.

    ``lease`` is ``live`` while it asked for news within the lease; one whose lease ``lapsed`` releases
    nothing that it computed afterwards. ``unheard`` means not since the office started.
    """

    server_id: str
    acknowledged: bool
    acknowledged_at_us: int | None
    epoch: int
    last_heard_us: int | None
    lease: Literal["live", "lapsed", "unheard"]


class ChangeAcknowledgements(Answer):
    """Which model hosts run what a change permits; nothing is asked of them before it is published."""

    change_id: str
    epoch: int | None
    published_at_us: int | None
    servers: tuple[ServerState, ...]


def of_epoch(desk: Desk, principal: Principal, request: EpochNumber) -> Acknowledgements:
    """Who runs an epoch."""
    del principal
    return Acknowledgements(
        epoch=request.epoch,
        items=tuple(desk.register.acknowledgements(request.epoch)),
        servers=tuple(desk.register.servers()),
    )


def of_change(desk: Desk, principal: Principal, request: ChangeId) -> ChangeAcknowledgements:
    """Who runs a change."""
    record = visible_change(desk, principal, request.change_id)
    if record.epoch is None:
        return ChangeAcknowledgements(change_id=record.id, epoch=None, published_at_us=None, servers=())
    said = {one.server_id: one.at_us for one in desk.register.acknowledgements(record.epoch)}
    (published,) = desk.register.publications(record.epoch - 1, 1)
    servers = []
    for server in desk.register.servers():
        heard = desk.heard.get(server.server_id)
        lease: Literal["live", "lapsed", "unheard"] = "unheard"
        if heard is not None:
            lease = "live" if desk.now_us - heard <= desk.settings.lease_s * 1e6 else "lapsed"
        servers.append(
            ServerState(
                server_id=server.server_id,
                # A host that runs a later epoch runs this one no more, and need not say so.
                acknowledged=server.epoch >= record.epoch,
                acknowledged_at_us=said.get(server.server_id),
                epoch=server.epoch,
                last_heard_us=heard,
                lease=lease,
            )
        )
    return ChangeAcknowledgements(
        change_id=record.id, epoch=record.epoch, published_at_us=published.at_us, servers=tuple(servers)
    )


ROWS = (
    Operation(
        name="epochs.acknowledgements",
        method="GET",
        path="/epochs/{epoch}/acknowledgements",
        roles=ANYONE,
        request=EpochNumber,
        response=Acknowledgements,
        run=of_epoch,
        summary="Says which servers run what an epoch permits.",
        example={"epoch": 1},
    ),
    Operation(
        name="changes.acknowledgements",
        method="GET",
        path="/changes/{change_id}/acknowledgements",
        roles=ANYONE,
        request=ChangeId,
        response=ChangeAcknowledgements,
        run=of_change,
        summary="Says which model hosts run a published change, since when, and which do not yet.",
        example={"change_id": "chg_0198f0c2a1b37c4e8d5f60718293a4b5"},
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""Published epochs: the one in force, one by its number, and those that came after one.

What an epoch froze is for the platform's staff (``epochs.snapshot``); that it exists, and its digest, is for
everybody, so that anyone can notice a publication and compare what they were given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.errors import RoleRequired
from cluster.operations.scope import sees_everything
from cluster.operations.table import ANYONE, STAFF, Answer, Nothing, Operation, Request
from policy.facts.snapshot import Snapshot
from policy.records.epochs import Publication
from tenants.roles import Principal

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class EpochNumber(Request):
    """Which epoch."""

    epoch: int = Field(ge=0, lt=2**31)


class EpochsAfter(Request):
    """Which epochs: those above a number, lowest first."""

    after: int = Field(default=0, ge=0, lt=2**31, description="the last epoch that you have seen")
    limit: int = Field(default=100, ge=1, le=500, description="most rows to return")


class EpochView(Answer):
    """What is in force now."""

    epoch: int
    snapshot_digest: str
    published_at_us: int
    engine_version: str
    vocabulary_version: str


class EpochNotice(Answer):
    """That an epoch was published, when, and the digest of what it froze."""

    epoch: int
    snapshot_digest: str
    published_at_us: int


class EpochNotices(Answer):
    """Epochs without a gap between them."""

    items: tuple[EpochNotice, ...]


def current_epoch(desk: Desk, principal: Principal, request: Nothing) -> EpochView:
    """The epoch in force."""
    del principal, request
    found = desk.register.snapshot(None)
    return EpochView(
        epoch=found.epoch,
        snapshot_digest=found.digest,
        published_at_us=found.published_at_us,
        engine_version=found.engine_version,
        vocabulary_version=found.vocabulary_version,
    )


def snapshot(desk: Desk, principal: Principal, request: EpochNumber) -> Snapshot:
    """Every fact of an epoch."""
    if not sees_everything(principal):
        raise RoleRequired(
            "A snapshot holds every tenant's facts. Ask the platform's compliance staff or its auditors.",
            operation="epochs.snapshot",
        )
    return desk.register.snapshot(request.epoch)


def show(desk: Desk, principal: Principal, request: EpochNumber) -> EpochNotice:
    """One epoch."""
    del principal
    desk.register.digest_of(request.epoch)  # refuses what was never published
    (row,) = desk.register.publications(request.epoch - 1, 1)
    return _notice(row)


def since(desk: Desk, principal: Principal, request: EpochsAfter) -> EpochNotices:
    """Epochs after a number."""
    del principal
    rows = desk.register.publications(request.after, request.limit)
    return EpochNotices(items=tuple(_notice(row) for row in rows))


def _notice(row: Publication) -> EpochNotice:
    return EpochNotice(epoch=row.epoch, snapshot_digest=row.snapshot_digest, published_at_us=row.at_us)


ROWS = (
    Operation(
        name="epochs.current",
        method="GET",
        path="/epochs/current",
        roles=ANYONE,
        request=Nothing,
        response=EpochView,
        run=current_epoch,
        summary="Says which epoch is in force, with its digest.",
    ),
    Operation(
        name="epochs.snapshot",
        method="GET",
        path="/epochs/{epoch}/snapshot",
        roles=STAFF,
        request=EpochNumber,
        response=Snapshot,
        run=snapshot,
        summary="Gives every fact of a published epoch.",
        example={"epoch": 1},
    ),
    Operation(
        name="epochs.since",
        method="GET",
        path="/epochs",
        roles=ANYONE,
        request=EpochsAfter,
        response=EpochNotices,
        run=since,
        summary="Lists the epochs that were published after one, lowest first.",
        example={"after": 1},
    ),
    Operation(
        name="epochs.show",
        method="GET",
        path="/epochs/{epoch}",
        roles=ANYONE,
        request=EpochNumber,
        response=EpochNotice,
        run=show,
        summary="Says when an epoch was published, and the digest of what it froze.",
        example={"epoch": 1},
    ),
)

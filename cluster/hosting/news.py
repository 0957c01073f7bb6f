# SPDX-License-Identifier: Apache-2.0
"""Whether an answer of the register may be followed. Pure; applies nothing."""

from __future__ import annotations

from cluster.hosting.errors import EpochRefused
from cluster.office.protocol import EpochNews
from policy.facts.delta import Delta
from policy.facts.snapshot import Snapshot


def is_newer(
    news: EpochNews, known_epoch: int, known_digest: str, seen: tuple[int, str], floor: int = -1
) -> bool:
    """Whether an answer brings an epoch to put in force before it may renew the lease.

    Args:
        news: the answer.
        known_epoch: in force here; -1 before the first.
        known_digest: of its snapshot.
        seen: epoch and snapshot digest that were in force when the question was sent.
        floor: highest epoch that any host of this machine has followed, also before it started anew.

    Returns:
        True for a newer epoch, False for the one that is in force.

    Raises:
        EpochRefused: the answer is of a lower epoch, or of a register with another past. It renews nothing.
    """
    served = max(known_epoch, floor)
    if news.epoch < served:
        raise EpochRefused(
            "The register answered with a lower epoch than this host already serves; it was ignored.",
            epoch=news.epoch,
            served=served,
        )
    if news.epoch == known_epoch and news.snapshot_digest != known_digest:
        raise EpochRefused(
            "The register answered with another snapshot for the epoch this host serves.", epoch=news.epoch
        )
    seen_epoch, seen_digest = seen
    if news.seen_digest and seen_digest and news.seen_digest != seen_digest:
        raise EpochRefused(
            "The register has another past than the one this host followed; it was restored from elsewhere.",
            epoch=news.epoch,
            seen=seen_epoch,
        )
    if news.epoch > known_epoch >= 0 and seen_epoch != known_epoch:
        raise EpochRefused(
            "The answer is to a question of before the epoch in force, so its past cannot be compared; the "
            "host asks again.",
            epoch=news.epoch,
            served=known_epoch,
        )
    return news.epoch > known_epoch


def read_snapshot(news: EpochNews, known: Snapshot | None = None) -> Snapshot:
    """The snapshot that an answer carries or leads to, compared with what it announces.

    Args:
        news: the answer.
        known: the snapshot in force here, which changes start from.

    Raises:
        EpochRefused: it carries none, or one of another epoch.
        MalformedSnapshot, SnapshotMismatch: it is not the published one.
    """
    if news.changes_json is not None and known is not None:
        snapshot = Delta.from_json(news.changes_json).applied(known, news.snapshot_digest)
    elif news.snapshot_json is not None:
        snapshot = Snapshot.from_json(news.snapshot_json, expect_digest=news.snapshot_digest)
    else:
        raise EpochRefused("The register named a new epoch without its snapshot.", epoch=news.epoch)
    if snapshot.epoch != news.epoch:
        raise EpochRefused("The snapshot is of another epoch than announced.", epoch=news.epoch)
    return snapshot

# SPDX-License-Identifier: Apache-2.0
"""Tells of every published epoch, in order, and after a crash of those that had not been told.

What waits is in the outbox, written with the publication. The announcer is woken by the office's commits and
looks from time to time by itself; it marks what it told with work that is not urgent, so no withdrawal ever
waits for it. It knows neither who listens nor how hosts hear of epochs, which is not through it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from cluster.office.counter import Office
from cluster.office.desk import Desk
from model_core.errors import ProductError
from policy.records.epochs import Announcement

log = logging.getLogger(__name__)

Listener = Callable[[Announcement], None]

_LOOK_S = 30.0
_REST_S = 1.0


def say(announcement: Announcement) -> None:
    """Writes an epoch into the office's log: the listener that is always there."""
    log.info(
        "an epoch was published",
        extra={name: getattr(announcement, name) for name in ("epoch", "snapshot_digest", "reason")},
    )


async def keep_announcing(office: Office, tell: Listener = say) -> None:
    """Tells of epochs for as long as the office is open.

    Args:
        office: open.
        tell: called with each epoch, again where the office ended before it could note that it was told.
    """
    while True:
        generation = office.generation
        wait_s = _LOOK_S
        try:
            await announce(office, tell)
        except ProductError as error:
            log.warning("epochs wait to be told", extra={"code": error.code})
            wait_s = _REST_S
        await office.changed(generation, wait_s)


async def announce(office: Office, tell: Listener) -> int:
    """Tells what waits, and answers how many epochs that were."""
    told = 0
    while waiting := await office.look(lambda desk: desk.outbox.waiting()):
        for announcement in waiting:
            tell(announcement)
        epochs = [announcement.epoch for announcement in waiting]

        def mark(desk: Desk, epochs: list[int] = epochs) -> None:
            desk.outbox.mark(epochs)

        await office.do(mark, wakes=False)
        told += len(waiting)
    return told

# SPDX-License-Identifier: Apache-2.0
"""What the office does by itself: publishes changes whose moment has come.

It looks at the register and not at a list of its own, so a restart forgets nothing, and it sleeps no longer
than until the next moment. What is published, and whether it still may be, is decided by ``policy.schedule``.
"""

from __future__ import annotations

import asyncio
import logging

from cluster.office.counter import Office
from cluster.office.desk import now_us
from model_core.errors import ProductError

log = logging.getLogger(__name__)

_LOOK_S = 1.0


async def keep_calendar(office: Office) -> None:
    """Looks at the calendar for as long as the office is open."""
    while True:
        wait_s = _LOOK_S
        try:
            wait_s = await publish_due(office)
        except ProductError as error:
            # The next look tries again; what hinders it is said where it was raised.
            log.warning("the calendar could not be kept", extra={"code": error.code})
        await asyncio.sleep(wait_s)


async def publish_due(office: Office) -> float:
    """Publishes what is due, and answers how long nothing can become due, in seconds.

    Args:
        office: open.
    """
    due_us = await office.look(lambda desk: desk.schedule.next_due_us())
    if due_us is not None and due_us <= await office.look(lambda desk: desk.schedule.time_us()):
        for change in await office.do(lambda desk: desk.schedule.publish_due()):
            log.info("a scheduled change", extra={"change_id": change.id, "state": change.state})
        due_us = await office.look(lambda desk: desk.schedule.next_due_us())
    if due_us is None:
        return _LOOK_S
    return min(_LOOK_S, max(0.0, (due_us - now_us()) / 1e6))

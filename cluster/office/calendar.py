# SPDX-License-Identifier: Apache-2.0
"""What the office does by itself: publishes changes whose moment has come, and weighs what changes do.

It looks at the register and not at a list of its own, so a restart forgets nothing. For the calendar it
sleeps no longer than until the next moment. Weighing reads the whole decision log; it gets a small part of
the time and nobody waits for it. What is published, and whether it still may be, is decided by
``policy.schedule``; what is weighed by ``policy.preview``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from cluster.office.counter import Office
from cluster.office.desk import now_us
from model_core.errors import ProductError

log = logging.getLogger(__name__)

_LOOK_S = 1.0
# Weighing takes at most a tenth of the time, and shows what an epoch made stale after a minute.
_REST_FACTOR = 9.0
_PATIENCE_US = 60_000_000


async def keep_calendar(office: Office) -> None:
    """Publishes what is due for as long as the office is open."""
    await _keep(office, publish_due)


async def keep_weighing(office: Office) -> None:
    """Weighs changes for as long as the office is open."""
    await _keep(office, weigh_next)


async def _keep(office: Office, act: Callable[[Office], Awaitable[float]]) -> None:
    while True:
        wait_s = _LOOK_S
        try:
            wait_s = await act(office)
        except ProductError as error:
            # The next look tries again; what hinders it is said where it was raised.
            log.warning("the office's own work was refused", extra={"code": error.code})
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


async def weigh_next(office: Office) -> float:
    """Weighs one change or publication that has no report, and answers how long to rest, in seconds.

    Args:
        office: open.
    """
    began_s = time.monotonic()
    change_id = await office.look(lambda desk: desk.previews.next_change(_PATIENCE_US))
    if change_id is not None:
        plan = await office.do(lambda desk: desk.previews.plan_change(change_id), wakes=False)
    else:
        epoch = await office.look(lambda desk: desk.previews.next_publication())
        if epoch is None:
            return _LOOK_S
        plan = await office.look(lambda desk: desk.previews.plan_publication(epoch))
    report = await office.look(lambda desk: desk.previews.weigh(plan))
    await office.do(lambda desk: desk.previews.store(report), wakes=False)
    return max(_LOOK_S, (time.monotonic() - began_s) * _REST_FACTOR)

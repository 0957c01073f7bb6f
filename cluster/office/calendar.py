# SPDX-License-Identifier: Apache-2.0
"""What the office does by itself: publishes changes whose moment has come, and weighs what changes do.

It looks at the register and not at a list of its own, so a restart forgets nothing. For the calendar it
sleeps no longer than until the next moment. Weighing reads the whole decision log, page by page and each in
a unit of work of its own; it gets a small part of the time and nobody waits for it. What is published, and
whether it still may be, is decided by ``policy.changing.schedule``; what is weighed by ``policy.preview``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial

from cluster.office.counter import Office
from cluster.office.desk import Desk, now_us
from model_core.errors import ProductError
from policy.preview.asking import Asking
from policy.preview.previews import Plan

log = logging.getLogger(__name__)

_LOOK_S = 1.0
# Weighing takes a fifth of the time, and shows what an epoch made stale after a minute.
_REST_FACTOR = 4.0
_PATIENCE_US = 60_000_000


async def keep_calendar(office: Office) -> None:
    """Publishes what is due for as long as the office is open."""
    await _keep(office, publish_due)


async def keep_weighing(office: Office) -> None:
    """Weighs changes for as long as the office is open."""
    await _keep(office, partial(weigh_next, refused={}))


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
    while due_us is not None and due_us <= await office.look(lambda desk: desk.schedule.time_us()):
        # One at a time, so that a withdrawal waits for one of them at the most.
        done = await office.do(lambda desk: desk.schedule.publish_due(1))
        for change in done:
            log.info("a scheduled change", extra={"change_id": change.id, "state": change.state})
        if not done:
            break
        due_us = await office.look(lambda desk: desk.schedule.next_due_us())
    if due_us is None:
        return _LOOK_S
    return min(_LOOK_S, max(0.0, (due_us - now_us()) / 1e6))


async def weigh_next(office: Office, refused: dict[str, int] | None = None) -> float:
    """Weighs one change or publication that has no report, and answers how long to rest, in seconds.

    Args:
        office: open.
        refused: changes that could not be weighed (their edits fit the register no more) and when, in
            microseconds; passed over for a while so that others have their turn, and kept by this.
    """
    refused = {} if refused is None else refused
    waiting = {one for one, at_us in refused.items() if now_us() - at_us < _PATIENCE_US}
    change_id = await office.look(lambda desk: desk.previews.next_change(_PATIENCE_US, waiting))
    if change_id is None:
        epoch = await office.look(lambda desk: desk.previews.next_publication())
        if epoch is not None:
            await _weigh(office, await office.look(lambda desk: desk.previews.plan_publication(epoch)))
        return _LOOK_S
    try:
        await _weigh(office, await office.do(lambda desk: desk.previews.plan_change(change_id), wakes=False))
    except ProductError:
        refused[change_id] = now_us()
        raise
    return _LOOK_S


async def _weigh(office: Office, plan: Plan) -> None:
    asking = await office.look(lambda desk: desk.previews.begin(plan))
    last: str | None = ""
    while last is not None:
        began_s = time.monotonic()
        last = await office.look(partial(_ask_page, asking, last))
        await asyncio.sleep((time.monotonic() - began_s) * _REST_FACTOR)
    report = await office.look(lambda desk: desk.previews.finish(plan, asking))
    await office.do(lambda desk: desk.previews.store(report), wakes=False)


def _ask_page(asking: Asking, last: str, desk: Desk) -> str | None:
    return desk.previews.ask_page(asking, last)

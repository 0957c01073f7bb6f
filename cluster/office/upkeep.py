# SPDX-License-Identifier: Apache-2.0
"""What the office does by itself every minute: frees lost holds, notes ended consents, goes on with erasures.

Nothing waits for it. A consent ends at its own moment, whoever writes that down and whenever; what is being
erased serves nobody since it was approved. Each piece is a unit of work of its own, so one that is refused
holds up no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from functools import partial
from typing import TypeVar

from cluster.office.counter import Office
from cluster.office.desk import Desk, now_us
from cluster.office.erasing import carry_out
from model_core.errors import ProductError
from policy.errors import LegalHold
from policy.publishing.publication import PLATFORM_ACTOR

log = logging.getLogger(__name__)

T = TypeVar("T")

_ROUND_S = 60.0
# A reservation is kept at least so long, and so much longer than any answer may take.
_RESERVATION_LIFE_S = 3600.0
_AFTER_ANSWER_S = 600.0


def reservation_life_us(request_s: float) -> int:
    """From what age on a reservation reports nothing more, in microseconds.

    Args:
        request_s: how long an answer may take.
    """
    return int(max(_RESERVATION_LIFE_S, request_s + _AFTER_ANSWER_S) * 1_000_000)


async def keep_up(office: Office, request_s: float) -> None:
    """Does a round every minute for as long as the office is open.

    Args:
        office: open.
        request_s: how long an answer may take.
    """
    life_us = reservation_life_us(request_s)
    while True:
        await _try(office.do(lambda desk: desk.metering.release_expired(now_us() - life_us), wakes=False))
        await _try(office.do(note_expired, wakes=False))
        await go_on_erasing(office)
        await asyncio.sleep(_ROUND_S)


def note_expired(desk: Desk) -> list[str]:
    """Completes the records of consents whose time is over; answers the ids of the consents."""
    noted = desk.consents.note_expired()
    for consent_id in noted:
        desk.audit.append(PLATFORM_ACTOR, "consents.expire", f"consents/{consent_id}", {})
    return noted


async def go_on_erasing(office: Office) -> None:
    """Goes on with every approved erasure that nothing holds."""
    for erasure_id in await _try(office.look(lambda desk: desk.erasures.approved())) or ():
        await _try(office.do(partial(carry_out, erasure_id=erasure_id), wakes=False))


async def _try(work: Awaitable[T]) -> T | None:
    try:
        return await work
    except LegalHold:  # said to whoever asks for that erasure
        return None
    except ProductError as error:
        # The next round tries again; what hinders it is said where it was raised.
        log.warning("the office's upkeep was refused", extra={"code": error.code})
        return None

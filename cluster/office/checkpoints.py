# SPDX-License-Identifier: Apache-2.0
"""Signs a checkpoint of the audit every minute, or every thousand records, and keeps it outside the database.

Each day has a file of its own, to which notes are only appended; ``latest.txt`` is replaced. Whoever copies
these files away can prove later that nothing before them was changed. Nothing here decides anything; a folder
that cannot be written is a warning, and the next round tries again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from datetime import UTC, datetime
from pathlib import Path

from cluster.office.counter import Office
from cluster.office.desk import Desk, now_us
from model_core.errors import ProductError
from model_core.packing.keys import load_or_create_key
from policy.audit.sealing import append_seal, count_seals
from policy.records.audit import Checkpoint

log = logging.getLogger(__name__)

_LOOK_S = 5.0
_EVERY_S = 60.0
_EVERY_RECORDS = 1000


async def keep_checkpoints(office: Office, folder: Path) -> None:
    """Exports checkpoints for as long as the office is open.

    Args:
        office: open.
        folder: where to.
    """
    exported, waited_s = -1, _EVERY_S
    while True:
        try:
            await office.do(lambda desk: append_seal(desk.session, (), now_us()), wakes=False)  # what waits
            seals = await office.look(lambda desk: count_seals(desk.session))
            if seals != exported and (waited_s >= _EVERY_S or seals - exported >= _EVERY_RECORDS):
                point = await office.look(_sign)
                await asyncio.to_thread(export_checkpoint, folder, point)
                exported, waited_s = point.seals, 0.0
        except (ProductError, OSError) as error:
            log.warning("no checkpoint could be exported", extra={"kind": type(error).__name__})
        await asyncio.sleep(_LOOK_S)
        waited_s += _LOOK_S


def export_checkpoint(folder: Path, point: Checkpoint) -> Path:
    """Appends a checkpoint to its day's file, and makes it the latest.

    Returns:
        The day's file.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    day = folder / f"{datetime.fromtimestamp(point.at_us / 1e6, UTC):%Y-%m-%d}.txt"
    data = point.note.encode()
    _write(day, data, os.O_APPEND)
    draft = folder / ".latest.txt"
    _write(draft, data, os.O_TRUNC)
    draft.replace(folder / "latest.txt")
    return day


def _sign(desk: Desk) -> Checkpoint:
    return desk.audit.checkpoint(load_or_create_key(desk.home.checkpoint_key))


def _write(path: Path, data: bytes, how: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600)
    before, whole = os.fstat(handle).st_size, False
    try:
        whole = os.write(handle, data) == len(data)
        os.fsync(handle)
    finally:
        if not whole:
            # Half a note would make the whole file unreadable for whoever verifies with it.
            os.ftruncate(handle, before)
        os.close(handle)
    if not whole:
        raise OSError(errno.ENOSPC, "short write")

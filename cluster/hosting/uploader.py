# SPDX-License-Identifier: Apache-2.0
"""Carries journals to the office: its own server's while it runs, former servers' after a crash.

Resending is harmless (the office counts a (server, sequence) once), so every doubt is answered by sending
again. The uploader knows the office by protocol only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Protocol

from cluster.errors import OfficeUnavailable
from cluster.hosting.journal import UsageJournal
from cluster.hosting.journals import former_journals
from cluster.office.protocol import UsageRecord
from model_core.errors import ProductError

log = logging.getLogger(__name__)

# Records of one request add up until they are sent, so an office that is slow is asked less often: sending
# takes at most a twentieth of the time, and nothing waits longer than this.
_REST = 19.0
_LONGEST_PAUSE_S = 5.0


class UsageDesk(Protocol):
    """The part of the office that this module needs."""

    async def record_usage(self, server_id: str, sequence: int, batch: list[UsageRecord]) -> int:
        """Stores a batch exactly once; answers the last accepted sequence of this server."""
        ...


class Uploader:
    """Uploads a journal in the background and recovers abandoned ones of the same folder.

    Args:
        journal: this server's journal.
        office: where records go.
        interval_s: shortest pause between two uploads; also the pause between two syncs.
        recover_every_s: how often abandoned journals are looked for.
        part_bytes: a part that has grown longer is continued in a new one.
    """

    def __init__(
        self,
        journal: UsageJournal,
        office: UsageDesk,
        *,
        interval_s: float = 0.25,
        recover_every_s: float = 10.0,
        part_bytes: int = 64 << 20,
    ) -> None:
        self._journal = journal
        self._office = office
        self._interval_s = interval_s
        self._recover_every_s, self._part_bytes = recover_every_s, part_bytes
        self.refusals = 0
        self.last_refusal = ""

    async def run(self) -> None:
        """Runs until cancelled."""
        loop = asyncio.get_running_loop()
        next_recovery_s = next_upload_s = loop.time()
        pause_s = self._interval_s
        while True:
            await asyncio.to_thread(self._journal.sync)
            began_s = loop.time()
            if began_s >= next_upload_s:
                try:
                    await upload(self._journal, self._office)
                    pause_s = pause_after(loop.time() - began_s, self._interval_s)
                    if self._journal.size_bytes > self._part_bytes:
                        await asyncio.to_thread(self._journal.next_part)
                    if began_s >= next_recovery_s:
                        next_recovery_s = began_s + self._recover_every_s
                        await recover(self._journal.path.parent, self._office)
                except ProductError as err:
                    # Away, restarting or refusing: the records are safe on disk and are sent again.
                    self.refusals += 1
                    self.last_refusal = err.code
                    pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
                    log.warning("usage upload postponed: %s", err.code)
                next_upload_s = loop.time() + pause_s
            await asyncio.sleep(self._interval_s)

    async def finish(self, deadline_s: float = 5.0) -> None:
        """Uploads what is left and closes the journal; what cannot be sent is recovered by the next start."""
        with contextlib.suppress(ProductError, TimeoutError):
            # A journal that is settled is read by nobody again, so what still runs here ends here.
            await asyncio.to_thread(self._journal.finish_all)
            await asyncio.wait_for(upload(self._journal, self._office), deadline_s)
        await asyncio.to_thread(self._journal.close)


def pause_after(took_s: float, interval_s: float) -> float:
    """How long to wait after an upload, in seconds.

    Args:
        took_s: how long the upload took.
        interval_s: shortest pause.
    """
    return max(interval_s, min(_LONGEST_PAUSE_S, _REST * took_s))


async def upload(journal: UsageJournal, office: UsageDesk) -> int:
    """Sends what the journal holds now, in order; returns how many batches were stored.

    What is written meanwhile waits for the next time. Streams write all the time, so a loop until nothing is
    left would go on for as long as they do, with a batch for every few tokens.

    Raises:
        ProductError: the office's; the batch stays unacknowledged.
    """
    sent = 0
    for _ in range(journal.waiting_batches):
        batch = await asyncio.to_thread(journal.next_batch)
        if batch is None:
            break
        accepted = await office.record_usage(batch.server_id, batch.sequence, list(batch.records))
        if accepted < batch.sequence:
            break
        journal.acknowledge(batch.sequence)
        sent += 1
    return sent


async def recover(folder: Path, office: UsageDesk) -> int:
    """Uploads the journals of servers that no longer live; returns how many were settled.

    One that is refused stays, and holds up no other.

    Raises:
        OfficeUnavailable: nobody answers, so the others are not tried either.
    """
    settled = 0
    for path in former_journals(folder):
        journal = await asyncio.to_thread(UsageJournal.reopen, path)
        if journal is None:
            continue
        try:
            await asyncio.to_thread(journal.finish_all)  # frees what its requests still hold
            await upload(journal, office)
            settled += journal.settled
        except OfficeUnavailable:
            raise
        except ProductError as err:
            log.warning(
                "the journal of a former server is refused: %s", err.code, extra={"journal": path.name}
            )
        finally:
            await asyncio.to_thread(journal.close)
    return settled

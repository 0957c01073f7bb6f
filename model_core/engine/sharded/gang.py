# SPDX-License-Identifier: Apache-2.0
"""Starts the ranks of a machine, asks all of them at once, and ends all of them when one fails.

A question is answered by every rank within a bound or the gang is over: whatever one of them did not do
cannot count as done. It knows lines and processes, not what is computed.
"""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from model_core.engine.sharded.wire import LineClosed, Message, encode, receive
from model_core.errors import RankLost

# What this process can import, its ranks can too, wherever they are started.
_LAUNCH = (
    "import json, sys\n"
    "config = json.loads(sys.argv[1])\n"
    "sys.path[:] = config.pop('path')\n"
    "from model_core.engine.sharded.rank import main\n"
    "main(config)\n"
)
_END_WAIT_S = 2.0


class Gang:
    """Ranks that were started together.

    Args:
        lines: one per rank, in order of rank.
        processes: the ranks' processes, where they are this gang's to end.
        folder: of this gang alone; removed with it.
        patience_s: how long all ranks together may take for an answer.
    """

    def __init__(
        self,
        lines: Sequence[socket.socket],
        *,
        processes: Sequence[subprocess.Popen[bytes]] = (),
        folder: Path | None = None,
        patience_s: float,
    ) -> None:
        self.size = len(lines)
        self.folder = folder
        self._lines, self._processes, self._patience_s = list(lines), list(processes), patience_s
        self._mutex = threading.Lock()
        self._why: str | None = None
        self._end = weakref.finalize(self, _end, self._lines, self._processes, folder)

    @classmethod
    def start(
        cls,
        n_ranks: int,
        *,
        device: str = "cpu",
        threads: int = 1,
        patience_s: float = 30.0,
        start_s: float = 120.0,
    ) -> Gang:
        """Starts ranks and waits until they have found each other.

        Args:
            n_ranks: how many.
            device: ``cpu``, or ``cuda`` for one device per rank.
            threads: compute threads of each.
            patience_s: how long all ranks together may take for an answer.
            start_s: how long they may take to start.

        Raises:
            RankLost: one of them did not start.
        """
        folder = Path(tempfile.mkdtemp(prefix="ranks-"))  # of this user alone
        lines, processes = [], []
        with contextlib.ExitStack() as theirs:
            between: list[dict[int, socket.socket]] = [{} for _ in range(n_ranks)]
            for low, high in combinations(range(n_ranks), 2):
                ends = socket.socketpair()
                between[low][high], between[high][low] = (theirs.enter_context(end) for end in ends)
            for rank, others in enumerate(between):
                ours, line = socket.socketpair()
                theirs.enter_context(line)
                config = {
                    "path": sys.path,
                    "line": line.fileno(),
                    "others": {other: end.fileno() for other, end in others.items()},
                    "rank": rank,
                    "n_ranks": n_ranks,
                    "device": device,
                    "threads": threads,
                    "store": str(folder / "meeting"),
                    # A rank that waits for another gives up after the engine has.
                    "patience_s": max(patience_s, start_s) + 5.0,
                }
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", _LAUNCH, json.dumps(config)],
                        pass_fds=[line.fileno(), *(end.fileno() for end in others.values())],
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,  # an interrupt is the engine's to act on
                    )
                )
                lines.append(ours)
        gang = cls(lines, processes=processes, folder=folder, patience_s=patience_s)
        gang._collect(start_s)
        return gang

    @property
    def alive(self) -> bool:
        """Whether all ranks are there, as far as can be told without asking them."""
        return self._why is None and all(process.poll() is None for process in self._processes)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids in order of rank."""
        return tuple(process.pid for process in self._processes)

    def ask(self, document: Mapping[str, Any]) -> list[Message]:
        """Tells all ranks the same and waits until all have answered.

        Raises:
            RankLost: one has ended, failed or not answered in time; all were ended, now or before.
        """
        return self.ask_each([document] * self.size)

    def ask_each(
        self, documents: Sequence[Mapping[str, Any]], *, patience_s: float | None = None
    ) -> list[Message]:
        """The same with a document for each rank.

        Args:
            documents: one per rank.
            patience_s: how long the answers may take; None as long as any.

        Raises:
            RankLost: as ``ask``.
        """
        frames = [encode(Message(document=dict(document))) for document in _distinct(documents)]
        with self._mutex:
            if self._why is not None:
                raise self._lost(self._why)
            try:
                for place, line in enumerate(self._lines):
                    line.settimeout(self._patience_s)  # what lies in the way of sending is no work
                    line.sendall(frames[min(place, len(frames) - 1)])
            except OSError:
                raise self._fail("has ended") from None
            return self._collect(self._patience_s if patience_s is None else patience_s)

    def close(self) -> None:
        """Ends all ranks and removes the gang's folder."""
        with self._mutex:
            self._why = self._why or "was ended"
            self._end()

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _collect(self, patience_s: float) -> list[Message]:
        """One answer of every rank, whichever comes first."""
        deadline_s = time.monotonic() + patience_s
        answers: dict[int, Message] = {}
        waiting = {line.fileno(): rank for rank, line in enumerate(self._lines)}
        poll = select.poll()
        for descriptor in waiting:
            poll.register(descriptor, select.POLLIN)
        while waiting:
            ready = poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000)
            if not ready:
                raise self._fail("does not answer")
            for descriptor, _ in ready:
                rank = waiting.pop(descriptor)
                poll.unregister(descriptor)
                line = self._lines[rank]
                line.settimeout(max(0.001, deadline_s - time.monotonic()))
                try:
                    answers[rank] = receive(line)
                except (LineClosed, ConnectionError):
                    raise self._fail("has ended") from None
                except TimeoutError:
                    raise self._fail("does not answer") from None
                if failure := answers[rank].document.get("failed"):
                    raise self._fail(f"has failed ({failure})")
        return [answers[rank] for rank in range(self.size)]

    def _fail(self, why: str) -> RankLost:
        self._why = why
        for process in self._processes:
            process.kill()
        self._end()
        return self._lost(why)

    def _lost(self, why: str) -> RankLost:
        return RankLost(
            f"A process that computes a part of this base {why}; start the host anew.", n_ranks=self.size
        )


def _distinct(documents: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """One document where all are the same one, so that it is encoded once."""
    return documents[:1] if all(one is documents[0] for one in documents) else documents


def _end(
    lines: Sequence[socket.socket], processes: Sequence[subprocess.Popen[bytes]], folder: Path | None
) -> None:
    """Closes lines, upon which ranks end by themselves, and does not wait long for that."""
    for line in lines:
        line.close()
    deadline_s = time.monotonic() + _END_WAIT_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(0.0, deadline_s - time.monotonic()))
        process.kill()
        process.wait()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)

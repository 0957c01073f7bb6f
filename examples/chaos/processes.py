# SPDX-License-Identifier: Apache-2.0
"""Finds every process of one installation, holds them all still, and kills them all.

They are stopped before they are killed, so that none can react to the death of another: what the kill
leaves behind is the state of one instant, as a power switch would leave it (but for the page cache).
Processes of anybody else, also of another marketplace on the same machine, are never touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from cluster.home import Home
from cluster.ray_node import ProcessMark, processes_of
from cluster.run_file import RunFile

_ROUNDS = 20
_END_S = 10.0


class NotAllFound(RuntimeError):
    """Processes keep appearing, or one would not die."""


class Standstill:
    """Every process of an installation, stopped until it is killed or let go on.

    Args:
        home: the installation's folder.
        *commands: process ids of ``marketplace`` commands that run right now.
    """

    def __init__(self, home: Home, *commands: int) -> None:
        self._home = home
        self._commands = commands
        self.marks: dict[int, ProcessMark] = {}
        self.names: dict[int, str] = {}

    def __enter__(self) -> Standstill:
        """Stops everything; whatever was started meanwhile is stopped in the next round."""
        for _ in range(_ROUNDS):
            found = family(self._home, *self._commands)
            fresh = [process for process in found if process.pid not in self.marks]
            if not fresh and self.marks:
                return self
            for process in fresh:
                with contextlib.suppress(psutil.Error):
                    mark = ProcessMark.of(process.pid)
                    process.suspend()
                    self.marks[process.pid] = mark
                    self.names[process.pid] = _name(process)
        self.let_go()
        raise NotAllFound("The marketplace kept starting processes while it was being stopped.")

    def __exit__(self, *_: object) -> None:
        """Lets what was not killed go on."""
        self.let_go()

    def kill(self) -> int:
        """Sends SIGKILL to every process and sees to it that none is left; returns how many there were."""
        for mark in self.marks.values():
            _send(mark, signal.SIGKILL)
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline:
            left = [pid for pid, mark in self.marks.items() if mark.process() is not None]
            if not left and not list(family(self._home)):
                return len(self.marks)
            time.sleep(0.02)
        raise NotAllFound(f"Processes survived SIGKILL: {[process.pid for process in family(self._home)]}")

    def let_go(self) -> None:
        """Continues whatever still lives."""
        for mark in self.marks.values():
            _send(mark, signal.SIGCONT)

    def count(self, word: str) -> int:
        """How many of the stopped processes have a word in their command line."""
        return sum(word in name for name in self.names.values())


def family(home: Home, *commands: int) -> Iterator[psutil.Process]:
    """Living processes of the installation: by the run's mark, by descent, and by where they stand.

    Training children have a clean environment and a session of their own; they are found as descendants
    of their workshop, and by their folder should the workshop be gone.
    """
    seen: set[int] = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    roots: list[psutil.Process] = []
    with contextlib.suppress(ValueError):
        run = RunFile.model_validate(home.read_run() or {}).ray
        if run is not None:
            roots = [*processes_of(run.run_id), *filter(None, [run.owner.process()])]
    for pid in commands:
        with contextlib.suppress(psutil.Error):
            roots.append(psutil.Process(pid))
    for root in (*roots, *_standing_in(home.root / "jobs")):
        with contextlib.suppress(psutil.Error):
            for process in (root, *root.children(recursive=True)):
                if process.pid not in seen and process.status() != psutil.STATUS_ZOMBIE:
                    seen.add(process.pid)
                    yield process


def _standing_in(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if Path(f"/proc/{process.pid}/cwd").readlink().is_relative_to(folder):
                yield process


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()) or process.name()
    return ""


def _send(mark: ProcessMark, number: signal.Signals) -> None:
    process = mark.process()
    if process is not None:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)

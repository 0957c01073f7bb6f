# SPDX-License-Identifier: Apache-2.0
"""Processor time of a service's processes, by part: what streaming takes from the engine on the same cores.

Unlike tokens per second it says little about what else the machine does meanwhile.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import psutil

# What the command line of a process contains, to the part it stands for.
_PARTS = (("ServeReplica:host", "model host"), ("ServeReplica:gateway", "gateway"), ("OfficeActor", "office"))
ELSE = "everything else"

Processes = Callable[[], Iterable[psutil.Process]]


def part_of(command: str) -> str:
    """Which part of a service a process is, by its command line."""
    return next((part for mark, part in _PARTS if mark in command), ELSE)


class Meter:
    """Adds up what processes spend while something runs.

    Args:
        processes: those of the service, asked before and after.
        part: how one of them is called, by its command line.

    Attributes:
        spent_s: by part, seconds of processor time.
    """

    def __init__(self, processes: Processes, part: Callable[[str], str] = part_of) -> None:
        self._processes, self._part = processes, part
        self.spent_s: Counter[str] = Counter()

    def run(self, work: Callable[[], float]) -> float:
        """Does the work and counts what it took; answers what the work does."""
        before = {pid: seconds for pid, (_, seconds) in self._look().items()}
        answer = work()
        for pid, (part, seconds) in self._look().items():
            self.spent_s[part] += seconds - before.get(pid, 0.0)
        return answer

    def _look(self) -> dict[int, tuple[str, float]]:
        found = {}
        for process in self._processes():
            try:
                times, command = process.cpu_times(), " ".join(process.cmdline())
            except psutil.Error:
                continue
            found[process.pid] = (self._part(command), times.user + times.system)
        return found


def this_process() -> list[psutil.Process]:
    """The process that asks."""
    return [psutil.Process(os.getpid())]


def per_thousand(spent_s: Mapping[str, float], tokens: int) -> dict[str, float]:
    """Seconds for a thousand tokens."""
    return {part: 1000.0 * seconds / tokens for part, seconds in spent_s.items()}

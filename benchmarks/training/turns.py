# SPDX-License-Identifier: Apache-2.0
"""Training loops in one process that take turns step by step, so that all see the same machine.

With one thread a step is timed by that thread's processor time, which other work on the machine does not
lengthen; with several by the wall clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import torch

from benchmarks.training.sides import Pause


def clock(threads: int) -> Callable[[], float]:
    """What times work of so many threads, called in the thread that works."""
    return time.thread_time if threads == 1 else time.perf_counter


class Side:
    """A training loop in a thread of its own that stands still between its turns.

    Args:
        train: the loop; it calls what it is given after every optimizer step.
        threads: of torch within a step.
    """

    def __init__(self, train: Callable[[Pause], None], *, threads: int) -> None:
        self._train, self._threads = train, threads
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._ending = False
        self._clock = clock(threads)
        self._began = self._seconds = 0.0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def step(self) -> float:
        """Lets the loop do one optimizer step (the first time: set up too); returns the seconds it took."""
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._seconds

    def end(self) -> None:
        """Lets the loop end."""
        self._ending = True
        self._go.release()
        self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        torch.set_num_threads(self._threads)
        self._began = self._clock()
        try:
            if not self._ending:
                self._train(self._pause)
        except BaseException as error:
            self._error = error
        self._done.release()

    def _pause(self) -> bool:
        self._seconds = self._clock() - self._began
        self._done.release()
        self._go.acquire()
        self._began = self._clock()
        return self._ending


def interleave(
    sides: Mapping[str, Callable[[Pause], None]], *, steps: int, warm_up: int, threads: int
) -> dict[str, list[float]]:
    """Seconds of each side's steps, taken in turns.

    Args:
        sides: loops by name.
        steps: measured steps of each.
        warm_up: steps of each before, not measured.
        threads: of torch.
    """
    running = {name: Side(train, threads=threads) for name, train in sides.items()}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm_up + steps):
        for name, side in running.items():
            seconds = side.step()
            if turn >= warm_up:
                taken[name].append(seconds)
    for side in running.values():
        side.end()
    return taken

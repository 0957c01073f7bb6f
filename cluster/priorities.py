# SPDX-License-Identifier: Apache-2.0
"""Who gets a core first where several want it: streams before everything that can wait for a moment.

All of it is Linux's own and needs no privilege. Elsewhere nothing happens, and whoever asks goes on.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

# A tenth of the share of a thread that computes steps, where both want the same core.
_NICENESS = 10
_THREADS = Path("/proc/self/task")


def stand_back() -> None:
    """Lowers the priority of this thread, and of all that it starts from now on."""
    # Linux knows a niceness of each thread; systems that do not would slow the whole process down.
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)


def interrupt_nobody() -> None:
    """Makes every thread of this process, and all that they start, wait until who computes has had its turn.

    The share of the cores stays what it was (``SCHED_BATCH``), so nothing starves. Only the privilege goes
    of taking a core from its holder on waking up, which a process that mostly sleeps has otherwise.
    """
    if sys.platform == "linux":
        for thread in _THREADS.iterdir():
            with contextlib.suppress(OSError):  # it ended meanwhile, or the system forbids it
                os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))

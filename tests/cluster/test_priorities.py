# SPDX-License-Identifier: Apache-2.0
"""A process that interrupts nobody keeps its share of the cores, and gives up taking them on waking."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, threading
from cluster.priorities import interrupt_nobody

done, ids = threading.Event(), []
def wait():
    ids.append(threading.get_native_id())
    done.wait()
before = threading.Thread(target=wait)
before.start()
niceness = os.getpriority(os.PRIO_PROCESS, 0)
interrupt_nobody()
after = threading.Thread(target=wait)
after.start()
while len(ids) < 2:
    pass
for thread in (0, *ids):
    same = os.getpriority(os.PRIO_PROCESS, thread) == niceness
    print(os.sched_getscheduler(thread) == os.SCHED_BATCH, same)
done.set()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such policy")
def test_every_thread_of_the_process_interrupts_nobody_and_is_as_nice_as_before() -> None:
    """The one that asks, one that ran before, and one that starts later."""
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.split() == ["True"] * 6

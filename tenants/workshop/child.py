# SPDX-License-Identifier: Apache-2.0
"""The training child: one job line in on standard input, event lines out on standard output.

``python -m tenants.workshop.child`` is what the enclosure becomes. Exit status 0: done; 1: failed, the last
line says why; 3: stopped on SIGTERM after a checkpoint. Only standard output speaks the protocol: whatever a
library prints goes to standard error.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from model_core.errors import ProductError
from tenants.workshop.protocol import (
    EXIT_STOPPED,
    MAX_LINE_BYTES,
    ChildEvent,
    ErrorEvent,
    PhaseEvent,
    event_line,
    parse_spec,
)

# Failures of the machine rather than of the job: another attempt may succeed.
_RETRY = (MemoryError, OSError)


def main() -> int:
    """Reads the job, does it, says how it ends."""
    stopping = False

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, ask_to_stop)
    # Keep a private copy of standard output for events and point the old number at standard error.
    events = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def emit(event: ChildEvent) -> None:
        events.write(event_line(event))

    try:
        spec = parse_spec(sys.stdin.buffer.readline(MAX_LINE_BYTES + 1))
        emit(PhaseEvent(name="start", message="Loading the numerical libraries."))
        from tenants.workshop.workbench import run_job

        outcome = run_job(spec, emit, lambda: stopping)
    except ProductError as error:
        emit(ErrorEvent(code=error.code, sentence=error.sentence[:1000], retry=False))
        return 1
    except _RETRY as error:
        sentence = f"The machine failed the job ({type(error).__name__}); another attempt may succeed."
        emit(ErrorEvent(code="machine_failed", sentence=sentence, retry=True))
        return 1
    except Exception as error:
        # The message may quote the tenant's text, so only the kind leaves the enclosure.
        sentence = f"The training failed for an unforeseen reason ({type(error).__name__})."
        emit(ErrorEvent(code="training_failed", sentence=sentence, retry=False))
        return 1
    return 0 if outcome.finished else EXIT_STOPPED


if __name__ == "__main__":
    # Everything is written and synced by now; taking the numerical libraries down in order takes seconds.
    status = main()
    sys.stderr.flush()
    os._exit(status)

# SPDX-License-Identifier: Apache-2.0
"""Peak memory of each side: how far a fresh process's resident size grows from its imports to its third step.

``python -m benchmarks.training.memory SIDE CASE`` is such a process; it prints the growth in bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import psutil
import torch

from benchmarks.training.case import Case
from benchmarks.training.sides import train_ours, train_theirs

_STEPS = 3


def peak_bytes(side: str, case: Case, *, threads: int) -> int:
    """Starts a process for one side and returns how far it grew.

    Args:
        side: ``ours`` or ``theirs``.
        case: the setting.
        threads: of torch.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.training.memory",
        side,
        json.dumps(asdict(case)),
        str(threads),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.strip().splitlines()[-1])


def _grow(side: str, case: Case) -> int:
    import accelerate  # noqa: F401
    import transformers.models.flex_olmo.modeling_flex_olmo
    import transformers.trainer  # noqa: F401

    before = psutil.Process().memory_info().rss
    steps = [0]

    def pause() -> bool:
        steps[0] += 1
        return steps[0] == _STEPS

    train = train_ours if side == "ours" else train_theirs
    train(case, pause)
    return peak_resident_bytes() - before


def peak_resident_bytes() -> int:
    """The peak of this program alone: ``getrusage`` would count what its parent held when it was forked."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("This system does not tell a process's peak memory; Linux does.")


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(_grow(sys.argv[1], Case(**json.loads(sys.argv[2]))))

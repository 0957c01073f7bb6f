# SPDX-License-Identifier: Apache-2.0
"""What the last bits of a run depend on besides its inputs: build, threads, processor, device, processes.

Where all of it is equal, a resumed run is byte for byte the uninterrupted one (CPU). Elsewhere sums are added
in another order; a run may go on there, and says so.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

import torch

# Relative difference of the final cross-entropy that a change of machine in the middle of a run may make. The
# bits of every step differ, and small differences grow with the steps; what the run learns does not.
ELSEWHERE_TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """Something that a run went on in spite of, and that people should know.

    Attributes:
        code: stable.
        sentence: for people.
        different: names of what differs.
    """

    code: str
    sentence: str
    different: tuple[str, ...]


def machine_of(device: torch.device, processes: int) -> dict[str, str]:
    """Names and values of everything that the last bits depend on, here and now."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "torch": str(torch.__version__),
        "threads": str(torch.get_num_threads()),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": name,
        "processes": str(processes),
    }


def moved(then: Mapping[str, str], now: Mapping[str, str], *, step: int) -> Notice | None:
    """What to say where a checkpoint was made on another machine; None where bits will be equal."""
    different = tuple(name for name in now if then.get(name) != now[name])
    if not different:
        return None
    listed = ", ".join(f"{name} {then.get(name, 'unknown')} is now {now[name]}" for name in different)
    return Notice(
        code="resumed_elsewhere",
        sentence=(
            f"The run goes on from step {step} under other conditions ({listed}). It will not end with the "
            f"bits of an uninterrupted run; its final loss agrees within {ELSEWHERE_TOLERANCE:.0%}."
        ),
        different=different,
    )

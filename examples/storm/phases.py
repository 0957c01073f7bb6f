# SPDX-License-Identifier: Apache-2.0
"""Where the time between a withdrawal and the last host's word goes, from the recorder's files alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.storm.judge import percentile
from examples.storm.publisher import Act

#: What a host does with news, in order, and how the table calls it.
PHASES = {"heard": "heard", "applied": "masked", "acknowledged": "sent word"}


def phase_figures(folder: Path, commits: Mapping[int, int], acts: Sequence[Act]) -> dict[str, float]:
    """Half and 99 % of the withdrawals reached each phase at the last host after so many milliseconds.

    Args:
        folder: the recorder's.
        commits: epoch to when the register published it, in microseconds; the moment at which the work on the
            withdrawal began, so that its own commit is part of what is shown.
        acts: the publisher's.
    """
    reached = _reached(folder)
    withdrawals = [act for act in acts if act.kind == "withdraw" and act.epoch in commits]
    told = sorted((act.told_us - commits[act.epoch]) / 1000 for act in withdrawals)
    found = {"owner was told": told}
    for kind, name in PHASES.items():
        at_us = reached[kind]
        found[f"last host {name}"] = sorted(
            (at_us[act.epoch] - commits[act.epoch]) / 1000 for act in withdrawals if act.epoch in at_us
        )
    return {
        f"withdrawal until {name} p{int(share * 100)}, ms": percentile(ms, share)
        for name, ms in found.items()
        for share in (0.5, 0.99)
        if ms
    }


def _reached(folder: Path) -> dict[str, dict[int, int]]:
    """By phase and epoch the moment at which the last host was there, in microseconds."""
    latest: dict[str, dict[int, int]] = defaultdict(dict)
    for path in sorted(folder.glob("*.jsonl")):
        seen: set[tuple[str, int]] = set()
        for line in path.read_bytes().splitlines():
            # Most lines are steps; they are not worth reading.
            if not line.startswith(tuple(b'{"kind":"%b"' % kind.encode() for kind in PHASES)):
                continue
            try:
                told = json.loads(line)
            except ValueError:
                continue  # the line that a kill cut off
            kind, epoch = told["kind"], int(told["epoch"])
            if (kind, epoch) not in seen:  # the same news may arrive twice; the first time counts
                seen.add((kind, epoch))
                latest[kind][epoch] = max(latest[kind].get(epoch, 0), int(told["at_us"]))
    return latest

# SPDX-License-Identifier: Apache-2.0
"""Three crashes of a whole marketplace, one per phase, and the proof that the oracle would notice a loss."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from examples.chaos.__main__ import free_port
from examples.chaos.client_log import ClientLog, read_log
from examples.chaos.phases import PHASES
from examples.chaos.run import Run


@pytest.mark.cluster
@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost_when_everything_is_killed() -> None:
    """After SIGKILL in each phase every promise holds; promises that were never made are noticed."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))  # its path is short, for Ray puts sockets below it
    lines: list[str] = []
    run = Run(folder, free_port(), say=lines.append)
    try:
        run.open()
        for seed, phase in enumerate(PHASES):
            run.play(phase, seed)
        run.forge()
    finally:
        run.close()
        print("\n".join([*lines, f"What is left of a failed run lies in {folder}."]))
    played = [line for line in lines if line.startswith("seed")]
    assert [line.split()[2] for line in played] == list(PHASES)
    shutil.rmtree(folder)


def test_a_log_tells_what_was_acknowledged_refused_and_left_open(tmp_path: Path) -> None:
    """A call sent again under its key is one act; an unanswered one may have happened, a refused one not."""
    log = ClientLog(tmp_path / "clients.jsonl")

    def send(key: str, *, told: str | None) -> None:
        number = log.number()
        log.append("sent", number=number, who="sue", operation="rules.forbid", fields={}, key=key)
        if told == "acknowledged":
            log.append(told, number=number, answer={"epoch": 3})
        elif told is not None:
            log.append(told, number=number, code="not_allowed")

    send("one", told=None)
    send("one", told="acknowledged")
    send("two", told=None)
    send("three", told="refused")
    log.close()
    told = read_log(tmp_path / "clients.jsonl")
    assert told.bounds("rules.forbid") == (1, 2)
    assert [call.answer for call in told.acknowledged("rules.forbid")] == [{"epoch": 3}]

# SPDX-License-Identifier: Apache-2.0
"""One run: an installation, crash after crash, and a line about each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from examples.chaos.forgery import FORGERIES
from examples.chaos.oracle import BrokenPromise, Oracle, settled
from examples.chaos.phases import FURTHER_PHASES, PHASES, Killed
from examples.chaos.stage import Stage, StageFailed, fresh_key, until

_SETTLED_S = 60.0


class Run:
    """Plays seeds on one installation.

    Args:
        folder: of the run; new.
        port: of the gateway.
        say: receives a line at a time.
    """

    def __init__(self, folder: Path, port: int, *, say: Callable[[str], None]) -> None:
        self.stage = Stage(folder, port)
        self._oracle = Oracle(self.stage)
        self._say = say

    def open(self) -> None:
        """Builds the stage and checks it once before anything is killed."""
        began = time.monotonic()
        self._say("Building a marketplace: a tiny base, two owners, two experts, one endpoint.")
        self.stage.build()
        self._settle()
        self._say(f"It stands after {time.monotonic() - began:.0f} s: {self._oracle.check()}.\n")

    def play(self, phase: str, seed: int) -> None:
        """Kills everything in a phase, brings it up again and checks every promise.

        Raises:
            BrokenPromise: one does not hold.
            StageFailed: it does not come up, or does not come into the phase.
        """
        chance = random.Random(f"{phase} {seed}")  # noqa: S311 (moments, not secrets)
        self._prelude(seed)
        killed = (PHASES | FURTHER_PHASES)[phase](self.stage, chance)
        up_s = self.stage.up()
        answer_s = self.stage.first_answer()
        outcome = self._finish(killed)
        self._settle()
        checked = self._oracle.check()
        self._say(
            f"seed {seed:2} {phase:10} {killed.evidence}; {killed.processes} processes killed"
            f"{f' (moment {killed.misses + 1})' if killed.misses else ''}; up in {up_s:.1f} s, "
            f"answering {answer_s:.1f} s later{outcome}; kept: {checked}"
        )

    def forge(self) -> None:
        """Adds to the log what never happened, one lie at a time: the oracle must notice each.

        To the oracle that is the same as a marketplace that lost what it had acknowledged.

        Raises:
            BrokenPromise: a lie went unnoticed.
        """
        for name, forgery in FORGERIES.items():
            with forgery(self.stage):
                try:
                    self._oracle.check()
                except BrokenPromise as noticed:
                    self._say(f"forged {name}: noticed ({noticed})")
                    continue
            raise BrokenPromise(f"The oracle does not notice a forged {name}.")
        self._oracle.check()

    def close(self) -> None:
        """Takes the marketplace down."""
        self.stage.close()

    def _prelude(self, seed: int) -> None:
        """A few answered calls right before the crash: the newest promises are the easiest to lose."""
        operator = self.stage.people["operator"]
        made = operator.call("keys.create", tenant="apps", principal=f"guest-{seed}", roles=["developer"])
        if seed % 2:
            operator.call("keys.revoke", key=fresh_key(), key_id=made["id"])
        operator.call("ledger.settle", key=fresh_key())
        operator.call("audit.checkpoint")

    def _finish(self, killed: Killed) -> str:
        """What clients do after a crash: they send again what was not answered, and wait for their jobs."""
        outcome = ""
        for send in killed.retry:
            before = int(self.stage.people["operator"].read("epochs.current")["epoch"])
            epoch = int(send()["epoch"])
            outcome = f"; asked again: it {'had been' if epoch <= before else 'was not yet'} published"
        for tenant, job_id in killed.jobs:
            job = self.stage.await_job(tenant, job_id)
            if job["state"] != "succeeded":
                raise StageFailed(f"The interrupted job {job['state']}: {job['error_sentence']}")
            outcome = f"; finished at attempt {job['attempts']}"
        return outcome

    def _settle(self) -> None:
        if not until(lambda: settled(self.stage), timeout_s=_SETTLED_S, pause_s=0.2):
            self._say("  (usage did not settle in time; the check says what is missing)")

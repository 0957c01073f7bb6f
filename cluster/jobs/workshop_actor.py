# SPDX-License-Identifier: Apache-2.0
"""A workshop as a Ray actor: platform code on the node where a tenant's job runs.

The actor holds the Ray token and the owner's key file; the training runs in a child that has neither. What
the foreman reads from it is made by this code alone, so nothing of the child is ever unpickled.
"""

from __future__ import annotations

import os
from typing import Any, Final

from cluster.jobs.attempt import Attempt, AttemptReport
from cluster.office.protocol import JobClaim

#: On a machine that also answers requests, training takes the time that answers leave.
_NICENESS: Final = 15


class WorkshopActor:
    """Runs one attempt.

    Args:
        settings: the operator's choices, as a document.
        claim: what to do, as a document.
    """

    def __init__(self, settings: dict[str, Any], claim: dict[str, Any]) -> None:
        from cluster.bootstrap import open_store, read_settings
        from cluster.home import Home
        from cluster.telemetry import log_to

        os.nice(_NICENESS)
        choices = read_settings(settings)
        home = Home(choices.home)
        log_to(home.logs, "workshop", choices.log_level)
        job = JobClaim.model_validate(claim)
        self._attempt = Attempt(job, open_store(choices, home), threads=choices.threads)
        self._attempt.start()

    def report(self) -> dict[str, Any]:
        """What is new since the last report (``AttemptReport``)."""
        return self._attempt.report().model_dump(mode="json")

    def stop(self) -> None:
        """Asks the child to write a checkpoint and end."""
        self._attempt.stop()


def read_report(document: dict[str, Any]) -> AttemptReport:
    """A workshop's report."""
    return AttemptReport.model_validate(document)

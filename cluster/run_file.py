# SPDX-License-Identifier: Apache-2.0
"""The note that a marketplace leaves in its home of what was started last, for whoever asks or comes next."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from cluster.home import Home
from cluster.ray_node import RayRun


class RunFile(BaseModel):
    """What the run file says about the marketplace that was started last.

    Attributes:
        ray: the own head; None when a running cluster was joined.
        joined: address of the joined cluster, empty for an own head.
        url: where the gateway answers; empty until it does.
        started_at_us: when.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    ray: RayRun | None = None
    joined: str = ""
    url: str = ""
    started_at_us: int = 0


def read_run(home: Home) -> RunFile | None:
    """The note of a home; None if there is none, or none that this version understands."""
    document = home.read_run()
    if document is None:
        return None
    try:
        return RunFile.model_validate(document)
    except ValueError:
        return None

# SPDX-License-Identifier: Apache-2.0
"""Says from outside, without joining the cluster, how the marketplace of a home is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from cluster.doors import open_doors
from cluster.home import Home
from cluster.parts import answers
from cluster.ray_node import processes_of
from cluster.run_file import read_run
from cluster.settings import Settings


class PartStatus(BaseModel):
    """One part of the marketplace, for people."""

    model_config = ConfigDict(frozen=True)

    part: str
    state: str
    detail: str = ""


class StatusReport(BaseModel):
    """How the marketplace of this home is.

    Attributes:
        running: True if everything answers.
        url: where the gateway answers or answered.
        parts: each part by name.
    """

    model_config = ConfigDict(frozen=True)

    running: bool
    url: str
    parts: tuple[PartStatus, ...]


def status(settings: Settings) -> StatusReport:
    """Looks from outside, without joining the cluster."""
    run = read_run(Home(settings.home))
    if run is None:
        return StatusReport(running=False, url="", parts=(PartStatus(part="marketplace", state="down"),))
    parts = []
    if run.ray is not None:
        count = sum(1 for _ in processes_of(run.ray.run_id))
        state = "up" if run.ray.alive else "down"
        parts.append(PartStatus(part="ray", state=state, detail=f"{count} processes"))
        parts.append(_doors(run.ray.run_id))
    else:
        parts.append(PartStatus(part="ray", state="joined", detail=run.joined))
    up = bool(run.url) and answers(run.url)
    parts.append(PartStatus(part="gateway", state="up" if up else "down", detail=run.url))
    return StatusReport(running=up, url=run.url, parts=tuple(parts))


def _doors(run_id: str) -> PartStatus:
    doors = list(open_doors(run_id))
    beyond = [f"{door.address}:{door.port}" for door in doors if not door.on_loopback]
    if beyond:
        return PartStatus(part="doors", state="beyond loopback", detail=", ".join(beyond))
    return PartStatus(part="doors", state="loopback only", detail=f"{len(doors)} listening sockets")

# SPDX-License-Identifier: Apache-2.0
"""The foreman as a detached Ray actor, and workshops as the actors it opens.

Workshops are owned by the foreman and die with it; their children die with them. A tenant's job is placed on
nodes that carry the tenant's label if there are any, and never on a node that carries another tenant's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError

from cluster.bootstrap import read_settings
from cluster.home import Home
from cluster.jobs.attempt import AttemptReport
from cluster.jobs.errors import WorkshopGone
from cluster.jobs.follower import JobFollower
from cluster.jobs.workshop_actor import WorkshopActor, read_report
from cluster.office.client import connect_office
from cluster.office.protocol import NAMESPACE, JobClaim
from cluster.settings import Settings
from cluster.telemetry import log_to

log = logging.getLogger(__name__)

#: Label of nodes that belong to one tenant.
TENANT_LABEL = "tenant"
_ANSWER_S = 5.0


def node_selector(tenant: str, node_labels: list[dict[str, str]]) -> dict[str, str]:
    """Which nodes may take a tenant's job: its own if it has some, else those that belong to nobody.

    Ray's labels attract and do not repel, so other tenants' nodes are left out by name.
    """
    owners = {labels[TENANT_LABEL] for labels in node_labels if TENANT_LABEL in labels}
    if tenant in owners:
        return {TENANT_LABEL: tenant}
    return {TENANT_LABEL: f"!in({','.join(sorted(owners))})"} if owners else {}


class RayWorkshop:
    """A workshop actor.

    Args:
        settings: the operator's choices.
        claim: what it does.
    """

    def __init__(self, settings: Settings, claim: JobClaim) -> None:
        labels = [node.get("Labels", {}) for node in ray.nodes() if node["Alive"]]
        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0, "max_concurrency": 4}
        if selector := node_selector(claim.tenant, labels):
            options["label_selector"] = selector
        self._handle = (
            ray.remote(WorkshopActor)
            .options(name=f"workshop-{claim.job_id}-{claim.attempt}", namespace=NAMESPACE, **options)
            .remote(settings.model_dump(mode="json"), claim.model_dump(mode="json"))
        )

    async def report(self) -> AttemptReport:
        """What is new."""
        try:
            return read_report(await asyncio.wait_for(self._handle.report.remote(), _ANSWER_S))
        except (ActorUnavailableError, GetTimeoutError) as err:
            raise TimeoutError from err
        except RayActorError as err:
            raise WorkshopGone("The workshop's process or node has ended.") from err
        except RayError as err:
            log.warning("a workshop cannot be asked: %s", type(err).__name__)
            raise WorkshopGone("The workshop cannot be reached.") from err

    async def stop(self) -> None:
        """Asks it to end after a checkpoint."""
        self._handle.stop.remote()

    async def end(self) -> None:
        """Ends it now."""
        ray.kill(self._handle, no_restart=True)


class Foreman:
    """The actor; it works on a thread with an event loop of its own.

    Args:
        settings: the operator's choices, as a document.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        choices = read_settings(settings)
        log_to(Home(choices.home).logs, "foreman", choices.log_level)
        self._follower = JobFollower(
            connect_office(),
            lambda claim: RayWorkshop(choices, claim),
            max_running=choices.ray_cpus,
            max_running_per_tenant=choices.max_running_per_tenant,
        )
        threading.Thread(target=self._work, name="foreman", daemon=True).start()

    async def following(self) -> tuple[str, ...]:
        """Jobs that run now."""
        return self._follower.following

    def _work(self) -> None:
        try:
            asyncio.run(self._follower.run())
        except BaseException:
            log.exception("the foreman failed")
        # Ray starts another one, which begins with putting orphans back in the queue.
        os._exit(1)

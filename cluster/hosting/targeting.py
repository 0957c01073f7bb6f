# SPDX-License-Identifier: Apache-2.0
"""How a gateway addresses one replica of a model host through its Serve handle.

Serve's own routers pick a replica by queue length and may give a request to another replica than the one that
was picked for it. Here the gateway picks (``cluster.hosting.routing``) and names the replica as the request's
session; a request that names none may go to any. The router also says which replicas there are, as Serve's
controller announces them.
"""

from __future__ import annotations

import itertools
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from cluster.hosting.announcements import announce
from cluster.hosting.errors import ReplicaLost


class TargetedRouter(RequestRouter):  # type: ignore[misc]
    """Sends a request to the replica that it names, and to no other."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._turns = itertools.count()

    @property
    def supports_rejection_protocol(self) -> bool:
        """Hosts bound themselves; Serve's own count of requests is not asked."""
        return False

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Takes what the controller announced."""
        super().update_replicas(replicas)
        announce(self._deployment_id.app_name, frozenset(one.replica_id.unique_id for one in replicas))

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Takes a replica out whose process has ended."""
        super().on_replica_actor_died(replica_id)
        names = frozenset(one.unique_id for one in self.curr_replicas)
        announce(self._deployment_id.app_name, names)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas; not used, since ``_choose_replica_for_request`` answers by itself."""
        del pending_request
        return [candidate_replicas]

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        wanted = pending_request.metadata.session_id
        replicas = sorted(self.curr_replicas.values(), key=lambda one: str(one.replica_id.unique_id))
        if not wanted:
            while not replicas:
                self._replicas_updated_event.clear()
                await self._replicas_updated_event.wait()
                replicas = list(self.curr_replicas.values())
            return replicas[next(self._turns) % len(replicas)]
        # A request is sent once: whether it began is not known when the replica dies over it.
        for replica in () if is_retry else replicas:
            if replica.replica_id.unique_id == wanted:
                return replica
        raise ReplicaLost("The model host went away. Ask again.", retry_after_s=1)

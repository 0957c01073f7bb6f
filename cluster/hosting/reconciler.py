# SPDX-License-Identifier: Apache-2.0
"""The reconciler: makes Serve run one model host per base that a deployment needs, and no other.

It compares what the register's newest snapshot needs with what Serve runs, and changes only the difference:
a healthy host is never restarted. It decides nothing about permission: a host that runs for a base serves
only what its own snapshot permits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve.schema import ApplicationStatus

from cluster.bootstrap import kernels_folder, read_settings
from cluster.gateway.deploy import APPLICATION as GATEWAY
from cluster.gateway.deploy import host_application as application_name
from cluster.home import Home
from cluster.hosting.host import host_application
from cluster.hosting.news import read_snapshot
from cluster.office.client import connect_office
from cluster.priorities import stand_back
from cluster.settings import Settings
from cluster.telemetry import log_to
from model_core.engine.native.compiler import build_library
from model_core.errors import ProductError
from policy.facts.snapshot import Snapshot

log = logging.getLogger(__name__)

_PREFIX = "host-"
_LOOK_S = 1.0
_POLL_S = 1.0
# Serve's answer takes processor time of its controller and of this process. While it runs what is needed,
# only a host that broke could be news.
_CALM_S = 3.0
_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 60.0
_BROKEN = frozenset({"DEPLOY_FAILED", "NOT_STARTED"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What has to change.

    Attributes:
        start: bases without a host.
        restart: bases whose host failed to deploy.
        stop: applications that no deployment needs.
    """

    start: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()


def compare(needed: frozenset[str], running: Mapping[str, str]) -> Difference:
    """Compares the bases that are needed with the applications that run.

    Args:
        needed: base digests.
        running: application name to Serve's status; names of others are left alone. Without the gateway
            nothing changes: Serve is not up yet.
    """
    if GATEWAY not in running:
        # Serve is started by `up` alone. Started from here it would open an HTTP proxy of its own, and two
        # that start it at the same time would fail each other.
        return Difference()
    names = {application_name(base): base for base in needed}
    hosts = {name: state for name, state in running.items() if name.startswith(_PREFIX)}
    return Difference(
        start=tuple(sorted(base for name, base in names.items() if name not in hosts)),
        restart=tuple(sorted(base for name, base in names.items() if hosts.get(name) in _BROKEN)),
        stop=tuple(
            sorted(name for name, state in hosts.items() if name not in names and state != "DELETING")
        ),
    )


class Reconciler:
    """The actor; it works on a thread with an event loop of its own.

    Args:
        settings: the operator's choices, as a document.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings: Settings = read_settings(settings)
        log_to(Home(self._settings.home).logs, "reconciler", self._settings.log_level)
        self._office = connect_office()
        self._snapshot: Snapshot | None = None
        self._needed: frozenset[str] = frozenset()
        self._calm_until_s = 0.0
        self._pause_s: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        if (folder := kernels_folder(self._settings)) is not None:
            # Well before the first host needs them; with nobody's stream to slow down yet.
            threading.Thread(target=build_library, args=(folder,), name="compiler", daemon=True).start()
        threading.Thread(target=self._work, name="reconciler", daemon=True).start()

    async def needed(self) -> tuple[int, tuple[str, ...]]:
        """The epoch it has seen and the bases that it keeps hosts for."""
        return self._epoch, tuple(sorted(self._needed))

    @property
    def _epoch(self) -> int:
        return -1 if self._snapshot is None else self._snapshot.epoch

    def _work(self) -> None:
        stand_back()  # a host that starts a moment later costs less than a stream that waits
        try:
            asyncio.run(self._run())
        except BaseException:
            log.exception("the reconciler failed")
        os._exit(1)  # Ray starts another one, which looks at everything anew

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except ProductError as err:
                log.warning("the register cannot be asked: %s", err.code)
                await asyncio.sleep(_LOOK_S)
            else:
                await self._act()

    async def _act(self) -> None:
        """Changes what differs; asks Serve for nothing while it is known to run what is needed."""
        if time.monotonic() < self._calm_until_s:
            return
        running = await asyncio.to_thread(_running)
        difference = compare(self._needed, running)
        if difference == Difference():
            self._calm_until_s = time.monotonic() + (_CALM_S if GATEWAY in running else 0.0)
            return
        await asyncio.to_thread(self._change, difference)
        await asyncio.sleep(_LOOK_S)

    async def _look(self) -> None:
        """Waits up to ``_POLL_S`` for a newer epoch."""
        known = self._snapshot
        news = await self._office.wait_epoch("reconciler", self._epoch, _POLL_S, changes=True)
        if news.epoch <= self._epoch:
            return
        self._snapshot = None  # where the changes lead elsewhere, the next question is for all of it
        self._snapshot = read_snapshot(news, known)
        needed = frozenset(fact.base_digest for fact in self._snapshot.deployments)
        if needed != self._needed:
            self._needed, self._calm_until_s = needed, 0.0

    def _change(self, difference: Difference) -> None:
        for name in difference.stop:
            log.info("a host is no longer needed", extra={"application": name})
            serve.delete(name)
        for base in difference.restart:
            if self._may_try(base):
                serve.delete(application_name(base))
                self._start(base)
        for base in difference.start:
            if self._may_try(base):
                self._start(base)

    def _may_try(self, base: str) -> bool:
        return time.monotonic() >= self._not_before.get(base, 0.0)

    def _start(self, base: str) -> None:
        name = application_name(base)
        log.info("a host starts", extra={"application": name})
        try:
            serve.run(host_application(self._settings, base), name=name, route_prefix=None, blocking=False)
        except Exception as err:  # whatever the replica's constructor raised; Serve wraps it at will
            pause_s = min(_LONGEST_PAUSE_S, self._pause_s.get(base, _FIRST_PAUSE_S / 2) * 2)
            self._pause_s[base] = pause_s
            self._not_before[base] = time.monotonic() + pause_s
            log.warning("a host did not start: %s", type(err).__name__, extra={"application": name})
        else:
            self._pause_s.pop(base, None)


def _running() -> dict[str, str]:
    """Serve's applications and their status."""
    applications = serve.status().applications
    return {
        name: (state.status.value if isinstance(state.status, ApplicationStatus) else str(state.status))
        for name, state in applications.items()
    }

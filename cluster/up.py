# SPDX-License-Identifier: Apache-2.0
"""Brings the marketplace up and down.

``bring_up`` may be called at any time: it finds what runs, ends what is left of a run that died, and starts
what is missing. Nothing it starts holds the only copy of anything, so starting anew is always safe. One
process does this at a time; the others are told so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from cluster.bootstrap import open_home, upgrade_database
from cluster.errors import AlreadyRunning, OfficeUnavailable, SecondNodeRefused, StartFailed
from cluster.home import Home
from cluster.office.desk import now_us
from cluster.office.protocol import NAMESPACE
from cluster.parts import await_gateway, await_office, ensure_actors, ensure_gateway, leave_cluster
from cluster.ray_node import RayRun, end_run, ray_environment, start_head
from cluster.run_file import RunFile, read_run
from cluster.settings import Settings, install_environment, installed
from model_core.errors import ProductError

Say = Callable[[str], None]


class RunningMarketplace(BaseModel):
    """A marketplace that answers.

    Attributes:
        url: where the gateway answers.
        ray_address: of the cluster it runs on.
        epoch: newest published epoch.
        fresh: True if this call started it, False if it ran already.
    """

    model_config = ConfigDict(frozen=True)

    url: str
    ray_address: str
    epoch: int
    fresh: bool


def bring_up(settings: Settings, say: Say = lambda _line: None) -> RunningMarketplace:
    """Starts the marketplace, or what is missing of it, and returns once it answers.

    Args:
        settings: the operator's choices.
        say: receives a line per step.

    Raises:
        HomeRefused: the home folder is not safe.
        UnsafeDatabaseRole: the role of the database URL could get around the guards.
        SchemaBehind: the database is another release's, and no owner is named who could upgrade it.
        AlreadyRunning: somebody else is starting or stopping it right now.
        StartFailed: a part did not come up in time.
    """
    home = open_home(settings)
    with _only_one(home):
        upgrade_database(settings)
        run, fresh = _ensure_ray(home, settings, say)
        try:
            return _bring_up_parts(home, settings, run, fresh, say)
        except (StartFailed, OfficeUnavailable):
            # A head that lost a process a moment ago still looks alive until its owner notices.
            if fresh or run.ray is None:
                raise
            say("The running parts do not answer; starting them anew.")
            end_run(run.ray)
            run, fresh = _ensure_ray(home, settings, say)
            return _bring_up_parts(home, settings, run, fresh, say)


def take_down(settings: Settings, say: Say = lambda _line: None) -> bool:
    """Ends every process of this home's marketplace. Nothing is lost by it, however abrupt.

    Returns:
        False if nothing was running.
    """
    home = open_home(settings)
    with _only_one(home):
        run = read_run(home)
        if run is None:
            return False
        if run.ray is not None:
            end_run(run.ray)
        elif run.joined:
            with _driver(home, run.joined, own=False):
                leave_cluster()
        home.forget_run()
        say("The marketplace is down.")
        return True


def _bring_up_parts(
    home: Home, settings: Settings, run: RunFile, fresh: bool, say: Say
) -> RunningMarketplace:
    address = run.ray.gcs_address if run.ray else run.joined
    with _driver(home, address, own=run.ray is not None):
        _check_nodes(settings)
        ensure_actors(settings)
        health = await_office(settings)
        say(f"The office is open at epoch {health.epoch}.")
        url = ensure_gateway(settings)
    home.write_run(run.model_copy(update={"url": url}).model_dump(mode="json"))
    await_gateway(url, settings.start_timeout_s)
    say(f"The marketplace answers at {url}.")
    return RunningMarketplace(url=url, ray_address=address, epoch=health.epoch, fresh=fresh)


def _ensure_ray(home: Home, settings: Settings, say: Say) -> tuple[RunFile, bool]:
    run = read_run(home)
    if settings.ray_address:
        say(f"Joining the Ray cluster at {settings.ray_address}.")
        joined = RunFile(joined=settings.ray_address, url=run.url if run else "", started_at_us=now_us())
        return joined, run is None
    if run is not None and run.ray is not None:
        if run.ray.usable:
            say("Ray runs already.")
            return run, False
        say("Cleaning up after a run that ended unexpectedly.")
        end_run(run.ray)
        home.forget_run()
    say("Starting Ray on this machine (loopback, with a token): one trust domain.")

    def note(ray_run: RayRun) -> RunFile:
        noted = RunFile(ray=ray_run, started_at_us=now_us())
        home.write_run(noted.model_dump(mode="json"))
        return noted

    return note(start_head(home, settings, note)), True


@contextlib.contextmanager
def _driver(home: Home, address: str, *, own: bool) -> Iterator[None]:
    if own and "ray" in sys.modules and installed("RAY_AUTH_MODE") != "token":
        raise StartFailed(
            "Ray was imported before its token was known, and it reads the token only once. Use a process "
            "of its own: marketplace up",
            part="driver",
        )
    options: dict[str, Any] = {}
    if own:
        install_environment(ray_environment(home))
        options["_node_ip_address"] = "127.0.0.1"
    import ray

    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError) as error:
        raise StartFailed(
            "Ray does not take this process as a driver. Is the address right, and the token the cluster's?",
            part="ray",
        ) from error
    try:
        yield
    except ray.exceptions.RayError as error:
        # A refusal of ours (a port that is taken) comes wrapped; its own sentence says what to do.
        cause = getattr(error, "cause", None)
        if isinstance(cause, ProductError):
            raise cause from None
        raise StartFailed(
            f"Ray lost a part while it was being started ({type(cause or error).__name__}). Try again; if it "
            "stays, the files in the installation's logs folder say more.",
            part="ray",
            kind=type(cause or error).__name__,
        ) from error
    finally:
        ray.shutdown()


def _check_nodes(settings: Settings) -> None:
    import ray

    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    if settings.embedded_database and nodes > 1:
        raise SecondNodeRefused(
            f"The cluster has {nodes} nodes, and SQLite serves one. Use PostgreSQL: set "
            "MARKETPLACE_DATABASE_URL=postgresql://user@host/name and start again.",
            nodes=nodes,
        )


@contextlib.contextmanager
def _only_one(home: Home) -> Iterator[None]:
    handle = os.open(home.root / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AlreadyRunning(
                "Another process is starting or stopping this marketplace right now. Try again in a moment."
            ) from error
        yield
    finally:
        os.close(handle)

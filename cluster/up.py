# SPDX-License-Identifier: Apache-2.0
"""Brings the marketplace up and down, and says how it is.

``bring_up`` may be called at any time: it finds what runs, ends what is left of a run that died, and starts
what is missing. Nothing it starts holds the only copy of anything, so starting anew is always safe. One
process does this at a time; the others are told so.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict

from cluster.bootstrap import open_home
from cluster.doors import open_doors
from cluster.errors import AlreadyRunning, OfficeUnavailable, SecondNodeRefused, StartFailed
from cluster.home import Home
from cluster.office.desk import now_us
from cluster.office.protocol import NAMESPACE, OFFICE_NAME, OfficeHealth
from cluster.ray_node import RayRun, end_run, processes_of, ray_environment, start_head
from cluster.settings import Settings, install_environment, installed
from model_core.errors import ProductError

Say = Callable[[str], None]

_POLL_S = 0.1

# Actor name → where its class is. They are imported once the process is a driver, since importing Ray is slow
# and must come after its environment.
_ACTORS = {
    OFFICE_NAME: ("cluster.office.actor", "OfficeActor"),
    "foreman": ("cluster.jobs.foreman", "Foreman"),
    "reconciler": ("cluster.hosting.reconciler", "Reconciler"),
}


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


def bring_up(settings: Settings, say: Say = lambda _line: None) -> RunningMarketplace:
    """Starts the marketplace, or what is missing of it, and returns once it answers.

    Args:
        settings: the operator's choices.
        say: receives a line per step.

    Raises:
        HomeRefused: the home folder is not safe.
        AlreadyRunning: somebody else is starting or stopping it right now.
        StartFailed: a part did not come up in time.
    """
    home = open_home(settings)
    with _only_one(home):
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
        run = _read_run(home)
        if run is None:
            return False
        if run.ray is not None:
            end_run(run.ray)
        elif run.joined:
            with _driver(home, run.joined, own=False):
                _leave_cluster()
        home.forget_run()
        say("The marketplace is down.")
        return True


def status(settings: Settings) -> StatusReport:
    """Looks from outside, without joining the cluster."""
    run = _read_run(Home(settings.home))
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
    answers = bool(run.url) and _answers(run.url)
    parts.append(PartStatus(part="gateway", state="up" if answers else "down", detail=run.url))
    return StatusReport(running=answers, url=run.url, parts=tuple(parts))


def _bring_up_parts(
    home: Home, settings: Settings, run: RunFile, fresh: bool, say: Say
) -> RunningMarketplace:
    address = run.ray.gcs_address if run.ray else run.joined
    with _driver(home, address, own=run.ray is not None):
        _check_nodes(settings)
        _ensure_actors(settings)
        health = _await_office(settings)
        say(f"The office is open at epoch {health.epoch}.")
        url = _ensure_gateway(settings)
    home.write_run(run.model_copy(update={"url": url}).model_dump(mode="json"))
    _await_gateway(url, settings.start_timeout_s)
    say(f"The marketplace answers at {url}.")
    return RunningMarketplace(url=url, ray_address=address, epoch=health.epoch, fresh=fresh)


# -- Ray -------------------------------------------------------------------------------------------------


def _ensure_ray(home: Home, settings: Settings, say: Say) -> tuple[RunFile, bool]:
    run = _read_run(home)
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


# -- parts -----------------------------------------------------------------------------------------------


def _ensure_actors(settings: Settings) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.office.actor import MAX_CONCURRENCY

    document = settings.model_dump(mode="json")
    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    for name, (module, kind_name) in _ACTORS.items():
        kind = getattr(import_module(module), kind_name)
        ray.remote(kind).options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=MAX_CONCURRENCY,
            scheduling_strategy=here,  # home, keys and the embedded database lie on this machine
        ).remote(document)


def _await_office(settings: Settings) -> OfficeHealth:
    from cluster.office.client import OfficeClient, SyncOfficeClient, connect_office

    office = connect_office(answer_s=settings.start_timeout_s, patience_s=settings.start_timeout_s)
    health: OfficeHealth = SyncOfficeClient(office).do(OfficeClient.health)
    return health


def _ensure_gateway(settings: Settings) -> str:
    from ray import serve

    from cluster.gateway.deploy import APPLICATION, deploy

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location="Disabled",
        logging_config={"encoding": "JSON", "log_level": settings.log_level, "enable_access_log": False},
    )
    # Deploying again replaces the replica and cuts its streams, so it is done only where there is none.
    running = APPLICATION in serve.status().applications
    try:
        handle = serve.get_app_handle(APPLICATION) if running else deploy(settings)
    except RuntimeError as error:  # Serve tells no more than that
        raise StartFailed(
            f"The gateway did not start. Most often its address {settings.http_host}:{settings.http_port} is "
            "taken: choose another port with MARKETPLACE_HTTP_PORT. Else the installation's logs say more.",
            part="gateway",
        ) from error
    try:
        host, port = handle.address.remote().result(timeout_s=settings.start_timeout_s)
    except TimeoutError as error:
        raise StartFailed("The gateway did not start in time.", part="gateway") from error
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def _leave_cluster() -> None:
    import ray
    from ray import serve

    from cluster.gateway.deploy import APPLICATION

    for name in serve.status().applications:
        if name == APPLICATION or name.startswith("host-"):
            serve.delete(name)
    for name in reversed(_ACTORS):
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))


def _await_gateway(url: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not _answers(url):
        if time.monotonic() > deadline:
            raise StartFailed("The gateway runs but does not answer its health question.", part="gateway")
        time.sleep(_POLL_S)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=5.0, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _doors(run_id: str) -> PartStatus:
    doors = list(open_doors(run_id))
    beyond = [f"{door.address}:{door.port}" for door in doors if not door.on_loopback]
    if beyond:
        return PartStatus(part="doors", state="beyond loopback", detail=", ".join(beyond))
    return PartStatus(part="doors", state="loopback only", detail=f"{len(doors)} listening sockets")


# -- files -----------------------------------------------------------------------------------------------


def _read_run(home: Home) -> RunFile | None:
    document = home.read_run()
    if document is None:
        return None
    try:
        return RunFile.model_validate(document)
    except ValueError:
        return None


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

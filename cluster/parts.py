# SPDX-License-Identifier: Apache-2.0
"""The parts of a marketplace on a Ray cluster: starts what is missing, waits for it, takes it away.

Expects the process to be a driver of the cluster already. Knows nothing of who starts Ray.
"""

from __future__ import annotations

import contextlib
import logging
import time
from importlib import import_module

import httpx

from cluster.errors import StartFailed
from cluster.office.protocol import NAMESPACE, OFFICE_NAME, OfficeHealth
from cluster.settings import Settings

_POLL_S = 0.1

# Actor name → where its class is. They are imported once the process is a driver, since importing Ray is slow
# and must come after its environment.
ACTORS = {
    OFFICE_NAME: ("cluster.office.actor", "OfficeActor"),
    "foreman": ("cluster.jobs.foreman", "Foreman"),
    "reconciler": ("cluster.hosting.reconciler", "Reconciler"),
}


def ensure_actors(settings: Settings) -> None:
    """Starts the detached actors that do not run yet."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.office.actor import MAX_CONCURRENCY

    document = settings.model_dump(mode="json")
    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    for name, (module, kind_name) in ACTORS.items():
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


def await_office(settings: Settings) -> OfficeHealth:
    """How the office is, once it answers.

    Raises:
        OfficeUnavailable: it does not answer in time.
    """
    from cluster.office.client import OfficeClient, SyncOfficeClient, connect_office

    office = connect_office(answer_s=settings.start_timeout_s, patience_s=settings.start_timeout_s)
    health: OfficeHealth = SyncOfficeClient(office).do(OfficeClient.health)
    return health


def ensure_gateway(settings: Settings) -> str:
    """Deploys the gateway where there is none, and returns the URL that it listens at.

    Raises:
        StartFailed: it did not start, or not in time.
    """
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


def leave_cluster() -> None:
    """Ends what is ours on a cluster that others started."""
    import ray
    from ray import serve

    from cluster.gateway.deploy import APPLICATION

    for name in serve.status().applications:
        if name == APPLICATION or name.startswith("host-"):
            serve.delete(name)
    for name in reversed(ACTORS):
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))


def await_gateway(url: str, timeout_s: float) -> None:
    """Waits for the gateway to answer over HTTP.

    Raises:
        StartFailed: it does not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not answers(url):
        if time.monotonic() > deadline:
            raise StartFailed("The gateway runs but does not answer its health question.", part="gateway")
        time.sleep(_POLL_S)


def answers(url: str) -> bool:
    """Whether the gateway at a URL says that it is well."""
    try:
        return httpx.get(f"{url}/healthz", timeout=5.0, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False

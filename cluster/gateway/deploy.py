# SPDX-License-Identifier: Apache-2.0
"""The gateway as a Serve deployment that runs its own HTTP server.

Serve's proxies stay off: they would answer routes of their own without a key. Each replica binds the
configured address itself; on one node there is one replica. Model hosts are reached through their Serve
handles, one application per base.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

import uvicorn
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.bootstrap import open_store
from cluster.collecting import spare_what_is_here
from cluster.errors import HostUnavailable, StartFailed
from cluster.gateway.app import build_app
from cluster.gateway.door import DoorLimits
from cluster.gateway.errors import TooManyRequests
from cluster.gateway.fleet import Fleet
from cluster.gateway.sealed import KEY_BYTES, SealedSessions
from cluster.gateway.server import bind, free_port, quiet_server
from cluster.home import Home
from cluster.hosting.announcements import listen
from cluster.hosting.errors import ReplicaLost
from cluster.hosting.lines import Frame
from cluster.hosting.messages import GenerationChunk, GenerationRequest, ScoreAnswer
from cluster.office.client import connect_office
from cluster.office.protocol import Admission
from cluster.secrecy import leave_no_core
from cluster.settings import Settings
from model_core.errors import ProductError

if TYPE_CHECKING:
    from cluster.hosting.probe import Probe

APPLICATION = "gateway"
_LAST_ANSWERS_S = 5.0


def host_application(base_digest: str) -> str:
    """Name of the Serve application whose replicas hold a base."""
    return "host-" + base_digest.removeprefix("sha256:")[:16]


_SWITCH_S = 0.0005


class ServedTransport:
    """Lines to the replicas of one Serve application.

    Args:
        application: its name.
        handle: its handle, whose router is ``TargetedRouter``.
    """

    def __init__(self, application: str, handle: DeploymentHandle[Any]) -> None:
        self._application = application
        self._handle = handle
        self._targeted: dict[str, tuple[DeploymentHandle[Any], DeploymentHandle[Any]]] = {}
        self._present: frozenset[str] = frozenset()

    def listen(self, listener: Callable[[frozenset[str]], None]) -> None:
        """Tells which replicas there are."""

        def told(replicas: frozenset[str]) -> None:
            self._present = replicas
            for gone in set(self._targeted) - replicas:
                self._targeted.pop(gone, None)
            listener(replicas)

        listen(self._application, told)

    async def line(self, replica: str, name: str) -> AsyncGenerator[Frame, None]:
        """Opens a line; closing it ends it at the replica."""
        _, streaming = self._to(replica)
        frames = streaming.line.remote(name)
        try:
            async for frame in frames:
                yield frame
        finally:
            frames.cancel()

    async def begin(
        self, replica: str, name: str, stream: str, admission: Admission, request: GenerationRequest
    ) -> None:
        """Begins a stream on an open line."""
        plain, _ = self._to(replica)
        try:
            await plain.begin.remote(name, stream, admission, request)
        except Exception as error:
            refused = _as_refusal(error)
            if isinstance(refused, HostUnavailable):  # it may or may not have begun; another one can go on
                refused = ReplicaLost("The model host went away. Ask again.", retry_after_s=1)
            raise refused from None

    async def drop(self, replica: str, name: str, streams: tuple[str, ...]) -> None:
        """Ends streams that nobody reads any more."""
        plain, _ = self._to(replica)
        await plain.drop.remote(name, streams)

    async def keep(self, replica: str, name: str) -> None:
        """Says that somebody still listens."""
        plain, _ = self._to(replica)
        await plain.keep.remote(name)

    def _to(self, replica: str) -> tuple[DeploymentHandle[Any], DeploymentHandle[Any]]:
        known = self._targeted.get(replica)
        if known is None:
            plain = self._handle.options(session_id=replica)
            known = plain, plain.options(stream=True)
            if replica in self._present:  # who is leaving is asked a few times more, and never again
                self._targeted[replica] = known
        return known


class ServedHosts:
    """Model hosts behind Serve handles, one application per base.

    Args:
        wait_s: how long a request waits for a replica where there is none.
        drain_s: how long a replica that leaves may go on with what it has.
    """

    def __init__(self, *, wait_s: float = 20.0, drain_s: float = 30.0) -> None:
        self._wait_s = wait_s
        self._drain_s = drain_s
        self._handles: dict[str, DeploymentHandle[Any]] = {}
        self._fleets: dict[str, Fleet] = {}

    async def generate(
        self, admission: Admission, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Streams from a replica of the admission's base; closing cancels there."""
        chunks = (await self.fleet(admission.base_digest)).generate(admission, request)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    async def score(
        self, base_digest: str, deployment: str, texts: tuple[str, ...], experts: tuple[str, ...] | None
    ) -> ScoreAnswer:
        """Scores texts at a host of a base."""
        answer: ScoreAnswer = await self._ask(base_digest, "score", deployment, texts, experts)
        return answer

    async def probe(self, base_digest: str, deployment: str, text: str) -> Probe:
        """Computes logits at a host of a base."""
        answer: Probe = await self._ask(base_digest, "probe", deployment, text)
        return answer

    async def close(self) -> None:
        """Ends every line."""
        for fleet in self._fleets.values():
            await fleet.close()

    async def fleet(self, base_digest: str) -> Fleet:
        """The replicas of a base.

        Raises:
            HostUnavailable: nothing serves it.
        """
        fleet = self._fleets.get(base_digest)
        if fleet is None:
            handle = await self._handle(base_digest)
            fleet = self._fleets.setdefault(
                base_digest,
                Fleet(
                    ServedTransport(host_application(base_digest), handle),
                    wait_s=self._wait_s,
                    drain_s=self._drain_s,
                ),
            )
        return fleet

    async def _ask(self, base_digest: str, method: str, *arguments: Any) -> Any:
        handle = await self._handle(base_digest)
        try:
            return await getattr(handle, method).remote(*arguments)
        except Exception as error:
            refused = _as_refusal(error)
            if isinstance(refused, HostUnavailable):
                self._handles.pop(base_digest, None)
            raise refused from None

    async def _handle(self, base_digest: str) -> DeploymentHandle[Any]:
        known = self._handles.get(base_digest)
        if known is not None:
            return known
        name = host_application(base_digest)
        try:
            handle: DeploymentHandle[Any] = await asyncio.to_thread(serve.get_app_handle, name)
        except RayServeException as error:
            raise HostUnavailable(
                "No model host runs for this deployment yet. It starts by itself; ask again soon.",
                retry_after_s=2,
            ) from error
        if not handle.is_initialized:
            handle._init()  # so that its router hears of the replicas before the first request
        return self._handles.setdefault(base_digest, handle)


def _as_refusal(error: Exception) -> Exception:
    """What Ray made of an error, turned back into what was meant."""
    # Ray raises a class of its own making that is also the cause's class; only the cause is ours.
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ProductError):
        return cause
    if isinstance(error, BackPressureError):
        return TooManyRequests("The model hosts are busy. Wait a second and ask again.", retry_after_s=1)
    if isinstance(error, RayTaskError) or not isinstance(error, RayError | RayServeException):
        return error
    return HostUnavailable("The model host went away in the middle. Ask again.", retry_after_s=1)


class Gateway:
    """One replica: an HTTP server in the replica's own event loop.

    Args:
        settings: the operator's choices, as a document.
        session_key: shared by the gateways of one deployment; None keeps console sessions in this process.
    """

    def __init__(self, settings: dict[str, Any], session_key: bytes | None = None) -> None:
        leave_no_core()
        # Streams go through one thread; Ray's own must not keep the interpreter from it for 5 ms at a time.
        sys.setswitchinterval(_SWITCH_S)
        self._settings = Settings.model_validate(settings)
        self._session_key = session_key
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._starting = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> None:
        settings = self._settings
        artifacts = await asyncio.to_thread(open_store, settings, Home(settings.home))
        sessions = None if self._session_key is None else SealedSessions(self._session_key)
        hosts = ServedHosts(wait_s=min(20.0, settings.first_token_s), drain_s=settings.drain_s)
        app = build_app(
            connect_office(), hosts, door_limits(settings), artifacts=artifacts, sessions=sessions
        )
        listener = await bind(settings.http_host, settings.http_port, shared=settings.gateways > 1)
        self._server = quiet_server(app)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        spare_what_is_here()

    async def check_health(self) -> None:
        """Serve's question whether this replica should live.

        Raises:
            StartFailed: the server has ended.
        """
        await self._starting
        if self._serving is None or self._serving.done():
            raise StartFailed("The gateway's HTTP server has ended.", part="gateway")

    async def address(self) -> tuple[str, int]:
        """Where the server listens, once it does."""
        await self._starting
        while self._server is None or not self._server.started:
            await asyncio.sleep(0.02)
            await self.check_health()
        host, port = self._server.servers[0].sockets[0].getsockname()[:2]
        return str(host), int(port)

    async def __del__(self) -> None:
        """Serve's word that the replica ends: what is being answered may end first."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.wait({self._serving}, timeout=_LAST_ANSWERS_S)


def door_limits(settings: Settings) -> DoorLimits:
    """How much a door of this installation takes."""
    return DoorLimits(
        staging=Home(settings.home).uploads,
        max_upload_bytes=settings.max_upload_bytes,
        max_tokens=settings.max_tokens,
        first_token_s=settings.first_token_s,
        request_s=settings.request_s,
    )


def deploy(settings: Settings) -> DeploymentHandle[Any]:
    """Runs the gateways as a Serve application and answers its handle; running it again changes nothing.

    Raises:
        StartFailed: several gateways are to share an address that somebody else has.
    """
    document = settings.model_dump(mode="json")
    session_key = None
    if settings.gateways > 1:
        document["http_port"] = free_port(settings.http_host, settings.http_port)
        session_key = secrets.token_bytes(KEY_BYTES)
    deployment = serve.deployment(
        num_replicas=settings.gateways,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=_LAST_ANSWERS_S + 2,
    )(Gateway)
    application = deployment.bind(document, session_key)
    return serve.run(application, name=APPLICATION, route_prefix=None, blocking=False)

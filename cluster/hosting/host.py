# SPDX-License-Identifier: Apache-2.0
"""A model host as a Serve deployment: one application per base, the whole mixture inside one replica."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from cluster.bootstrap import kernels_folder, open_store, read_settings, trusted_keys
from cluster.collecting import spare_what_is_here
from cluster.home import Home
from cluster.hosting.errors import HostStopping
from cluster.hosting.facts import HostHealth, HostSettings
from cluster.hosting.lines import Frame, Switchboard
from cluster.hosting.messages import GenerationRequest, ScoreAnswer
from cluster.hosting.scaling import CHOICES, TOKENS
from cluster.office.client import connect_office
from cluster.office.protocol import Admission
from cluster.secrecy import leave_no_core
from cluster.settings import Settings
from cluster.telemetry import log_to
from model_core.errors import SealMissing
from model_core.packing.bundle import CheckedBundle
from model_core.packing.manifest import ExpertManifest
from model_core.packing.seal import PLATFORM_TENANT, TrustedKeys

_SCALING = "cluster.hosting.scaling:HostScaling"
_ROUTER = "cluster.hosting.targeting:TargetedRouter"
_UNBOUNDED = 1_000_000
_LAST_WORDS_S = 10.0
_SWITCH_S = 0.001

if TYPE_CHECKING:
    import uvicorn

    from cluster.hosting.probe import Probe


def keys_of(home: Home) -> Callable[[CheckedBundle], TrustedKeys]:
    """Whose signatures an installation accepts on a bundle.

    An expert needs its tenant's own key and admission's. A base needs admission's: whoever trained it,
    admission vouches for it, and its own signature shows only that the seal is whole.
    """

    def trusted(checked: CheckedBundle) -> TrustedKeys:
        if isinstance(checked.manifest, ExpertManifest):
            return trusted_keys(home, checked.manifest.tenant)
        owner = checked.seal.signature("owner")
        if owner is None:
            raise SealMissing("The seal lacks the owner's signature.", role="owner")
        owners = {PLATFORM_TENANT: frozenset({owner.public_key})}
        return TrustedKeys(owners=owners, admission=trusted_keys(home).admission)

    return trusted


class ModelHost:
    """One replica.

    Args:
        settings: the operator's choices, as a document.
        base_digest: the base it holds.
    """

    async def __init__(self, settings: dict[str, Any], base_digest: str) -> None:  # type: ignore[misc]
        # Here and not above: who only deploys a host (the reconciler, `up`) needs no tensors.
        from cluster.hosting.server import ModelServer

        # The process is the host's own. With the usual 5 ms the engine's thread waits that long for the
        # interpreter while an expert is read in or an epoch is taken up, several times a step.
        sys.setswitchinterval(_SWITCH_S)
        # Serve awaits an asynchronous constructor: a replica counts as started once its base is loaded.
        leave_no_core()
        choices = read_settings(settings)
        home = Home(choices.home)
        log_to(home.logs, "host", choices.log_level)
        self._server = ModelServer(
            # A renewal that was not answered in time is asked anew, not waited for.
            office=connect_office(answer_s=10.0, patience_s=5.0),
            store=open_store(choices, home),
            trusted=keys_of(home),
            base_digest=base_digest,
            journals=home.journals,
            settings=HostSettings(
                max_sequences=choices.host_sequences,
                max_context=choices.host_context,
                threads=choices.threads,
                keep_poisoned=choices.host_keeps_withdrawn,
                kv_bytes=choices.host_kv_mib * 2**20,
                experts_bytes=None if choices.host_experts_mib is None else choices.host_experts_mib * 2**20,
                pins=choices.host_pins,
                shards=choices.host_shards,
                device=choices.host_device,
                reach_s=min(20.0, choices.first_token_s),
                kernels=kernels_folder(choices),
                weights=home.weights if choices.host_kernels else None,
            ),
        )
        await self._server.start()
        self._switchboard = Switchboard(self._server.generate, self._server.in_flight)
        self._door: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        if choices.host_http_port:
            await self._open_door(choices, home)
        spare_what_is_here()

    async def _open_door(self, choices: Settings, home: Home) -> None:
        """Answers HTTP in this process, so that no token crosses to another one on its way out."""
        from cluster.gateway.app import build_app
        from cluster.gateway.deploy import ServedHosts, door_limits
        from cluster.gateway.server import bind, quiet_server
        from cluster.hosting.near import NearHosts

        far = ServedHosts(wait_s=min(20.0, choices.first_token_s), drain_s=choices.drain_s)
        app = build_app(
            connect_office(),
            NearHosts(self._server, far),
            door_limits(choices),
            artifacts=open_store(choices, home),
        )
        listener = await bind(choices.http_host, choices.host_http_port, shared=True)
        self._door = quiet_server(app)
        self._serving = asyncio.create_task(self._door.serve(sockets=[listener]))

    async def line(self, name: str) -> AsyncGenerator[Frame, None]:
        """A gateway's line; see ``Switchboard.line``."""
        async for frame in self._switchboard.line(name):
            yield frame

    async def begin(self, name: str, stream: str, admission: Admission, request: GenerationRequest) -> None:
        """Begins a stream on a gateway's line; see ``Switchboard.begin``."""
        await self._switchboard.begin(name, stream, admission, request)

    async def drop(self, name: str, streams: tuple[str, ...]) -> None:
        """Ends streams of a gateway's line."""
        self._switchboard.drop(name, streams)

    async def keep(self, name: str) -> None:
        """A gateway's word that it still listens on its line."""
        self._switchboard.keep(name)

    async def probe(self, deployment: str, text: str, experts: tuple[str, ...] | None = None) -> Probe:
        """Logits of a text under a deployment's present composition; see ``ModelServer.probe``."""
        return await self._server.probe(deployment, text, experts)

    async def score(
        self, deployment: str, texts: tuple[str, ...], experts: tuple[str, ...] | None = None
    ) -> ScoreAnswer:
        """How well a deployment predicts texts; see ``ModelServer.score``."""
        return await self._server.score(deployment, texts, experts)

    async def health(self) -> HostHealth:
        """The host's own state."""
        return self._server.health()

    async def check_health(self) -> None:
        """Serve's question whether this replica should live.

        Raises:
            HostStopping: a thread, a task or its own door has ended.
        """
        self._server.check()
        if self._serving is not None and self._serving.done():
            raise HostStopping("The model host's own door has ended; the host is being replaced.")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What ``HostScaling`` decides by."""
        return {CHOICES: float(self._server.in_flight()), TOKENS: float(self._switchboard.tokens)}

    async def __del__(self) -> None:
        """Serve's word that the replica ends."""
        if self._door is not None and self._serving is not None:
            self._door.should_exit = True
            await asyncio.wait({self._serving}, timeout=_LAST_WORDS_S / 2)
        await self._server.stop()


def host_application(settings: Settings, base_digest: str) -> serve.Application:
    """The Serve application of one base."""
    deployment = serve.deployment(
        **_number_of_replicas(settings),
        max_ongoing_requests=_UNBOUNDED,  # a host bounds itself and says when to come again
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
        ray_actor_options={"num_cpus": 0, "num_gpus": _gpus(settings)},
        health_check_period_s=2,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=settings.drain_s + _LAST_WORDS_S,
    )(ModelHost)
    return deployment.bind(settings.model_dump(mode="json"), base_digest)


def _gpus(settings: Settings) -> int:
    """Devices that one host is given; without any Ray hides those of the machine from it."""
    return settings.host_shards if settings.host_device == "cuda" else 0


def _number_of_replicas(settings: Settings) -> dict[str, Any]:
    if settings.host_replicas_max <= settings.host_replicas:
        return {"num_replicas": settings.host_replicas}
    # More answers than compute at once wait; long ones hold a replica for longer than their number says.
    policy = AutoscalingPolicy(
        policy_function=_SCALING,
        policy_kwargs={
            "choices_each": float(settings.host_sequences),
            "tokens_each": float(settings.host_sequences * settings.host_context) / 2,
        },
    )
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=settings.host_replicas,
            max_replicas=settings.host_replicas_max,
            policy=policy,
            metrics_interval_s=1.0,
            look_back_period_s=5.0,
            upscale_delay_s=5.0,
            downscale_delay_s=300.0,
        )
    }

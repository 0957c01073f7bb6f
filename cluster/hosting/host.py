# SPDX-License-Identifier: Apache-2.0
"""A model host as a Serve deployment: one application per base, the whole mixture inside one replica."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.config import RequestRouterConfig

from cluster.bootstrap import open_store, read_settings, trusted_keys
from cluster.home import Home
from cluster.hosting.facts import HostHealth, HostSettings
from cluster.hosting.lines import Frame, Switchboard
from cluster.hosting.messages import GenerationRequest, ScoreAnswer
from cluster.office.client import connect_office
from cluster.office.protocol import Admission
from cluster.settings import Settings
from cluster.telemetry import log_to
from model_core.errors import SealMissing
from model_core.packing.bundle import CheckedBundle
from model_core.packing.manifest import ExpertManifest
from model_core.packing.seal import PLATFORM_TENANT, TrustedKeys

_ROUTER = "cluster.hosting.targeting:TargetedRouter"
_UNBOUNDED = 1_000_000
_LAST_WORDS_S = 10.0

if TYPE_CHECKING:
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

        # Serve awaits an asynchronous constructor: a replica counts as started once its base is loaded.
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
            ),
        )
        await self._server.start()
        self._switchboard = Switchboard(self._server.generate, self._server.in_flight)

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
        """Serve's question whether this replica should live."""
        self._server.check()

    async def __del__(self) -> None:
        """Serve's word that the replica ends."""
        await self._server.stop()


def host_application(settings: Settings, base_digest: str) -> serve.Application:
    """The Serve application of one base."""
    deployment = serve.deployment(
        num_replicas=settings.host_replicas,
        max_ongoing_requests=_UNBOUNDED,  # a host bounds itself and says when to come again
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=settings.drain_s + _LAST_WORDS_S,
    )(ModelHost)
    return deployment.bind(settings.model_dump(mode="json"), base_digest)

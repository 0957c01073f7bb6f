# SPDX-License-Identifier: Apache-2.0
"""Model hosts as the host's own HTTP door sees them: itself first, without a hop, and the others behind it.

A connection that the kernel gave to this process is answered here while there is room; that is all the
affinity there is, so a client that keeps its connection keeps its prefixes. What this host has no room for,
or no base for, goes the way that gateways go. Nothing here knows HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from cluster.gateway.hosts import Hosts
from cluster.hosting.errors import HostOverloaded
from cluster.hosting.messages import GenerationChunk, GenerationRequest, ScoreAnswer
from cluster.hosting.server import ModelServer
from cluster.office.protocol import Admission

if TYPE_CHECKING:
    from cluster.hosting.probe import Probe


class NearHosts:
    """This process's server, and the others.

    Args:
        server: here.
        far: how the others are reached.
    """

    def __init__(self, server: ModelServer, far: Hosts) -> None:
        self._server = server
        self._far = far

    async def generate(
        self, admission: Admission, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Streams one answer; closing ends it."""
        if self._is_here(admission.base_digest) and not self._server.gate.sealed:
            chunks = self._server.generate(admission, request)
            try:
                async for chunk in chunks:
                    yield chunk
            except HostOverloaded:  # raised before anything was computed or journaled
                pass
            else:
                return
            finally:
                await chunks.aclose()
        chunks = self._far.generate(admission, request)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    async def score(
        self, base_digest: str, deployment: str, texts: tuple[str, ...], experts: tuple[str, ...] | None
    ) -> ScoreAnswer:
        """Scores texts."""
        if self._is_here(base_digest):
            return await self._server.score(deployment, texts, experts)
        return await self._far.score(base_digest, deployment, texts, experts)

    async def probe(self, base_digest: str, deployment: str, text: str) -> Probe:
        """Computes logits."""
        if self._is_here(base_digest):
            return await self._server.probe(deployment, text)
        return await self._far.probe(base_digest, deployment, text)

    def _is_here(self, base_digest: str) -> bool:
        return base_digest == self._server.base_digest

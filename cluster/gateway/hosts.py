# SPDX-License-Identifier: Apache-2.0
"""Where the gateway sends an admitted request: the model host that holds its base.

Only the protocol and the errors of the way lie here, so that the gateway can be tested with any object
that yields chunks. The Serve handles stand in ``cluster.gateway.deploy``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Protocol

from cluster.hosting.messages import GenerationChunk, GenerationRequest, ScoreAnswer
from cluster.office.protocol import Admission

if TYPE_CHECKING:
    from cluster.hosting.probe import Probe  # loads torch, which the gateway's process does without


class Hosts(Protocol):
    """Every model host that runs now."""

    def generate(
        self, admission: Admission, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Streams the answer.

        Closing the generator MUST cancel the generation at the host. It MUST raise only ``ProductError``:
        ``HostUnavailable`` where no host answers, the host's own refusals otherwise.
        """
        ...

    async def score(
        self, base_digest: str, deployment: str, texts: tuple[str, ...], experts: tuple[str, ...] | None
    ) -> ScoreAnswer:
        """Scores texts under a deployment's composition or a subset of it."""
        ...

    async def probe(self, base_digest: str, deployment: str, text: str) -> Probe:
        """Logits of a text under a deployment's present composition."""
        ...

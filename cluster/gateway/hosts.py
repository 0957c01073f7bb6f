# SPDX-License-Identifier: Apache-2.0
"""Where the gateway sends an admitted request: the model host that holds its base.

Only the protocol and the errors of the way lie here, so that the gateway can be tested with any object
that yields chunks. The Serve handles stand in ``cluster.gateway.deploy``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from cluster.hosting.messages import GenerationChunk, GenerationRequest
from cluster.office.protocol import Admission


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

# SPDX-License-Identifier: Apache-2.0
"""What every route of the gateway shares: the office, the hosts, the limits, the places for generations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cluster.gateway.errors import TooManyRequests
from cluster.gateway.hosts import Hosts
from cluster.gateway.sessions import Sessions
from cluster.office.protocol import Caller, OfficeProtocol
from cluster.operations.table import Operation


@dataclass(frozen=True, kw_only=True, slots=True)
class DoorLimits:
    """How much the door takes.

    Attributes:
        staging: folder for bodies that are being received; the office reads it too.
        max_upload_bytes: longest file.
        max_tokens: most completion tokens one choice may ask for.
        default_max_tokens: what a chat request gets that names no bound.
        max_generations: generations that may run through this process at the same time.
        generation_timeout_s: longest wait for the next chunk of a host.
        first_token_s: longest wait for the first chunk.
        request_s: longest time from asking to the last chunk.
    """

    staging: Path
    max_upload_bytes: int
    max_tokens: int
    default_max_tokens: int = 256
    max_generations: int = 256
    generation_timeout_s: float = 120.0
    first_token_s: float = 120.0
    request_s: float = 1800.0


@dataclass(kw_only=True, slots=True)
class Door:
    """The gateway's wiring: what routes reach, and nothing else.

    Attributes:
        office: everything that is known or decided.
        hosts: everything that is generated.
        limits: how much is taken.
        sessions: people signed in to the console.
        generations: how many run now.
    """

    office: OfficeProtocol
    hosts: Hosts
    limits: DoorLimits
    sessions: Sessions = field(default_factory=Sessions)
    generations: int = 0

    async def authorise(self, credential: str, operation: Operation) -> Caller:
        """Identifies the caller and checks the row's roles, before anything of the body is stored.

        The office checks again when it runs the operation; this only spares the disk.
        """
        caller = await self.office.identify(credential)
        operation.check_roles(caller.roles)
        return caller

    def take_place(self) -> None:
        """Takes one of the places for generations.

        Raises:
            TooManyRequests: all are taken.
        """
        if self.generations >= self.limits.max_generations:
            raise TooManyRequests(
                "Every place for a generation is taken. Wait a second and ask again.", retry_after_s=1
            )
        self.generations += 1

    def free_place(self) -> None:
        """Gives a place back."""
        self.generations -= 1

# SPDX-License-Identifier: Apache-2.0
"""An answer that outlives its replica: when one is lost, another goes on where the text stopped.

The rest is asked of another replica under an admission of its own: the key, the deployment and the budget are
checked again, and each journal books its own tokens against its own reservation, so nothing can be charged
beyond what was held. The client sees one answer; its account names every request behind it. What the lost
replica had journaled and not delivered stays charged, since it was computed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

from cluster.errors import HostUnavailable
from cluster.gateway.hosts import Hosts
from cluster.hosting.errors import HostOverloaded, HostStopping, LeaseLost, PromptRefused, ReplicaLost
from cluster.hosting.messages import (
    GenerationAccount,
    GenerationChunk,
    GenerationRequest,
    Segment,
    joined_segments,
)
from cluster.office.protocol import Admission

log = logging.getLogger(__name__)

#: Losses that say nothing about the request: another replica may well answer it.
MOVABLE = (ReplicaLost, HostStopping, LeaseLost)

#: Refusals from before a host begins: nothing was computed, so no host will ever report this request's end.
UNBEGUN = (HostOverloaded, HostUnavailable, PromptRefused)

_MOST_MOVES = 4
_PAUSE_S = 0.1

#: Admits so many tokens over all choices.
Admit = Callable[[int], Awaitable[Admission]]
#: Gives back what a request holds that no host began.
Free = Callable[[str], Awaitable[None]]


class Told:
    """What the client has been told so far of one answer.

    Args:
        admission: the first.
        request: what was asked.
    """

    def __init__(self, admission: Admission, request: GenerationRequest) -> None:
        self._request = request
        self._reserved = admission.reserved_tokens
        self._untold = True
        self._requests = [admission.request_id]
        self._ids: list[list[int]] = [[] for _ in range(request.n)]
        self._open = set(range(request.n))
        self._segments: list[Segment] = []
        self._prompt_tokens: int | None = None

    @property
    def needed(self) -> int:
        """Tokens that the rest may take at most."""
        if self._untold:
            return self._reserved
        left = [self._request.max_tokens - len(self._ids[index]) for index in self._open]
        return max(left, default=0) * len(left)

    def rest(self, admission: Admission) -> GenerationRequest:
        """What is still to be generated, under another admission."""
        self._requests.append(admission.request_id)
        if self._untold:
            return self._request
        said = tuple(tuple(ids) if n in self._open else None for n, ids in enumerate(self._ids))
        return self._request.model_copy(update={"resumed": said, "echo": False})

    def take(self, chunk: GenerationChunk) -> GenerationChunk:
        """Notes a chunk and answers it as the client is to see it."""
        self._untold = False
        self._ids[chunk.index].extend(chunk.token_ids)
        self._segments.extend(chunk.segments)
        if chunk.finish_reason is not None:
            self._open.discard(chunk.index)
        first, self._prompt_tokens = self._prompt_tokens is None, self._prompt_tokens or chunk.prompt_tokens
        if len(self._requests) == 1:
            return chunk
        account = chunk.marketplace and self._account(chunk.marketplace)
        shown = chunk.prompt_tokens if first else None
        exact = chunk.exact if first else None
        return chunk.model_copy(update={"prompt_tokens": shown, "exact": exact, "marketplace": account})

    def _account(self, last: GenerationAccount) -> GenerationAccount:
        by_place = sorted(self._segments, key=lambda one: (one.part != "prompt", one.index, one.from_token))
        segments = joined_segments(by_place)
        return last.model_copy(
            update={
                "request_id": self._requests[0],
                "continued_as": tuple(self._requests[1:]),
                "completion_tokens": sum(len(ids) for ids in self._ids),
                "segments": segments,
                "scored_tokens": sum(one.to_token for one in segments if one.part == "prompt"),
            }
        )


async def generate_through(
    hosts: Hosts, admit: Admit, free: Free, admission: Admission, request: GenerationRequest
) -> AsyncGenerator[GenerationChunk, None]:
    """Streams one answer, moving on to another replica whenever one is lost.

    Args:
        hosts: where answers come from.
        admit: admits the rest.
        free: gives back holds of which it is sure that no host has begun. Of all others the host's own last
            record does, after the tokens that it may have journaled.
        admission: the first.
        request: what is generated.

    Raises:
        ProductError: what cannot be mended: a refusal, no admission, or too many losses.
    """
    told, asked = Told(admission, request), request
    for moves in range(_MOST_MOVES + 1):
        chunks = hosts.generate(admission, asked)
        begun = False
        try:
            async for chunk in chunks:
                begun = True
                yield told.take(chunk)
        except MOVABLE as error:
            if moves == _MOST_MOVES or told.needed < 1:
                raise
            log.warning("an answer moves to another replica: %s", error.code)
        except UNBEGUN:
            if not begun:
                await free(admission.request_id)
            raise
        else:
            return
        finally:
            await chunks.aclose()
        await asyncio.sleep(_PAUSE_S * moves)
        admission = await admit(told.needed)
        asked = told.rest(admission)

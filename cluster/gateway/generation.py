# SPDX-License-Identifier: Apache-2.0
"""One admitted generation on its way through the door: bounded waits, sure endings.

Whatever ends a generation (its last chunk, an error, a client that hangs up), its host is told and its
place is given back exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from cluster.errors import HostUnavailable
from cluster.gateway.door import Door
from cluster.gateway.errors import GenerationFailed, GenerationTimedOut, MalformedBody
from cluster.gateway.moving import generate_through
from cluster.gateway.patience import Patience
from cluster.gateway.threshold import log_unexpected
from cluster.hosting.messages import GenerationChunk, GenerationRequest
from cluster.office.protocol import Admission
from model_core.errors import ProductError

T = TypeVar("T")


class Generation:
    """A running generation.

    Args:
        door: whose place it takes; the place must have been taken already.
        credential: the caller's, for the admission that an answer needs when its replica is lost.
        admission: the office's.
        request: what is generated.
        request_id: the door's name of the HTTP request, for the log.
    """

    def __init__(
        self, door: Door, credential: str, admission: Admission, request: GenerationRequest, request_id: str
    ) -> None:
        async def admit(tokens: int) -> Admission:
            return await door.office.admit_request(
                credential, admission.deployment, tokens, continues=admission.request_id
            )

        async def free(request_id: str) -> None:
            with contextlib.suppress(ProductError):  # a hold that stays expires by itself
                await door.office.release_request(request_id)

        self._free, self._request = free, admission.request_id
        self._door = door
        self._request_id = request_id
        self._chunks = generate_through(door.hosts, admit, free, admission, request)
        self._patience = Patience()
        self._first: GenerationChunk | None = None
        self._deadline_s = asyncio.get_running_loop().time() + door.limits.request_s
        self._closed = self._asked = False

    @property
    def exact(self) -> bool:
        """Whether the host says that no bit of the answer depends on what is computed beside it."""
        return self._first is not None and bool(self._first.exact)

    async def start(self) -> None:
        """Waits for the first chunk, so that refusals of the host still become an HTTP status.

        Raises:
            HostUnavailable: the host ended before it began.
        """
        self._asked = True
        self._first = await self._next()
        if self._first is None:
            raise HostUnavailable("The model host ended the answer before it began. Ask again.")

    async def chunks(self) -> AsyncIterator[GenerationChunk]:
        """Every chunk, the first included."""
        chunk = self._first
        while chunk is not None:
            yield chunk
            chunk = await self._next()

    async def close(self) -> None:
        """Tells the host and gives the place back; safe to call again."""
        if self._closed:
            return
        self._closed = True
        self._patience.close()
        self._door.free_place()
        try:
            await self._chunks.aclose()
        except Exception as error:
            log_unexpected(error, self._request_id)
        if not self._asked:  # else the host's last record frees the hold, after all that it has journaled
            await self._free(self._request)

    async def _next(self) -> GenerationChunk | None:
        limits = self._door.limits
        patience_s = limits.first_token_s if self._first is None else limits.generation_timeout_s
        left_s = self._deadline_s - asyncio.get_running_loop().time()
        try:
            return await self._patience.wait(anext(self._chunks), min(patience_s, left_s))
        except StopAsyncIteration:
            return None
        except ProductError:
            raise
        except TimeoutError as error:
            if self._first is None:
                sentence = "No answer began in time; the model hosts are busy. Ask again in a moment."
            elif left_s < patience_s:
                sentence = f"The answer took longer than {limits.request_s:g} seconds. Ask for less."
            else:
                sentence = "The model host stopped answering. Ask again."
            raise GenerationTimedOut(sentence, retry_after_s=1) from error
        except Exception as error:
            log_unexpected(error, self._request_id)
            raise GenerationFailed("The model host failed in the middle of the answer. Ask again.") from None


class EventStream(StreamingResponse):
    """A server-sent event stream that ends its generation however it ends itself.

    Args:
        events: what is sent.
        ending: ends the generation; safe to call again.
        headers: of the response.
        within_s: how long sending may take: who reads nothing must not keep a place for ever.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        ending: Callable[[], Awaitable[None]],
        headers: dict[str, str],
        within_s: float,
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._ending = ending
        self._within_s = within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Streams; the ending runs even if the client left before the first event."""
        try:
            with contextlib.suppress(TimeoutError):  # the connection is closed in the middle of its answer
                async with asyncio.timeout(self._within_s):
                    await super().__call__(scope, receive, send)
        finally:
            await asyncio.shield(asyncio.ensure_future(self._ending()))


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Does work for a client that waits for it, and drops it when the client hangs up.

    The body must have been read already, so that the next message can only be the client's leaving.

    Raises:
        MalformedBody: the client left; nobody reads the answer.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise MalformedBody("The connection closed before the answer was ready.")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

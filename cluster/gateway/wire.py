# SPDX-License-Identifier: Apache-2.0
"""A gateway's line to one replica: hands what arrives to the streams, and notices silence and loss."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Protocol

from cluster.hosting.errors import HostStopping, ReplicaLost
from cluster.hosting.lines import KEEP_S, Frame, Item, StreamEnd
from cluster.hosting.messages import GenerationRequest
from cluster.office.protocol import Admission
from model_core.errors import ProductError
from model_core.packing.ids import new_id

log = logging.getLogger(__name__)

_LOOK_S = 0.25
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0


class WireTransport(Protocol):
    """The part of a fleet's transport that one wire needs."""

    def line(self, replica: str, name: str) -> AsyncGenerator[Frame, None]:
        """Opens a line; ends or raises when the replica is gone."""
        ...

    async def begin(
        self, replica: str, name: str, stream: str, admission: Admission, request: GenerationRequest
    ) -> None:
        """Begins a stream on an open line."""
        ...

    async def drop(self, replica: str, name: str, streams: tuple[str, ...]) -> None:
        """Ends streams that nobody reads any more."""
        ...

    async def keep(self, replica: str, name: str) -> None:
        """Says that somebody still listens."""
        ...


class Inbox:
    """What has arrived for one stream and was not read yet.

    Attributes:
        stream: its name on the line.
        choices: how many choices it has.
        ended: the host has said that nothing follows.
    """

    __slots__ = ("_items", "_waiter", "choices", "ended", "stream")

    def __init__(self, stream: str, choices: int) -> None:
        self.stream = stream
        self.choices = choices
        self.ended = False
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Item) -> None:
        """Takes an item in."""
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> Item:
        """The next item; one reader at a time."""
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._items.popleft()


class Wire:
    """One line.

    Args:
        transport: opens it.
        replica: to whom.
        silence_s: a line that says nothing for so long is given up until it speaks again.
        changed: told when it begins or ceases to take requests.
    """

    def __init__(
        self,
        transport: WireTransport,
        replica: str,
        *,
        silence_s: float,
        changed: Callable[[], None],
    ) -> None:
        self.replica = replica
        self._transport = transport
        self._name = ""
        self._silence_s = silence_s
        self._changed = changed
        self._inboxes: dict[str, Inbox] = {}
        self._reported = 0
        self._begun = 0
        self._heard_s = self._said_s = 0.0
        self._speaks = False
        self._leaving = False
        self._leave_by_s = float("inf")
        self._reader: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def takes(self) -> bool:
        """Whether new requests may go there."""
        return self._speaks and not self._leaving

    @property
    def in_flight(self) -> int:
        """Choices there: what the replica said last, and what was begun since."""
        return self._reported + self._begun

    def open(self, admission: Admission, request: GenerationRequest) -> Inbox:
        """Begins a stream."""
        inbox = Inbox(new_id("str"), request.n)
        self._inboxes[inbox.stream] = inbox
        self._begun += inbox.choices
        self._start(self._begin(inbox, admission, request))
        return inbox

    def close(self, inbox: Inbox) -> None:
        """Ends a stream, at the replica too if it still runs there."""
        if self._inboxes.pop(inbox.stream, None) is not None and not inbox.ended:
            self._start(self._drop((inbox.stream,)))

    def leave(self, drain_s: float) -> None:
        """Takes nothing new from now on, and ends when empty or after ``drain_s``."""
        if not self._leaving:
            self._leaving = True
            self._leave_by_s = asyncio.get_running_loop().time() + drain_s
            self._changed()

    def stop(self) -> None:
        """Ends the line at once."""
        self._leaving, self._leave_by_s = True, 0.0

    async def run(self) -> None:
        """Keeps the line until the replica has left."""
        pause_s = _FIRST_PAUSE_S
        while not (self._leaving and (not self._inboxes or self._overdue())):
            if self._reader is None:
                self._reader = asyncio.create_task(self._read())
            await asyncio.wait({self._reader}, timeout=_LOOK_S)
            if self._reader.done():
                self._reader = None
                self._lose(ReplicaLost("The model host went away.", retry_after_s=1))
                if self._leaving:
                    break
                await asyncio.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
            elif asyncio.get_running_loop().time() - self._heard_s > self._silence_s and self._speaks:
                self._lose(ReplicaLost("The model host does not answer.", retry_after_s=1))
            elif self._speaks:
                pause_s = _FIRST_PAUSE_S
                self._say_so()
        self._lose(HostStopping("The model host is ending.", retry_after_s=1))
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _overdue(self) -> bool:
        return asyncio.get_running_loop().time() >= self._leave_by_s

    def _say_so(self) -> None:
        """Tells the replica now and then that somebody still listens."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._said_s > KEEP_S:
            self._said_s = now_s
            self._start(self._keep())

    async def _keep(self) -> None:
        with contextlib.suppress(Exception):
            await self._transport.keep(self.replica, self._name)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        self._heard_s = loop.time()
        self._name = new_id("lin")  # of every attempt its own, so that the end of one ends no other
        frames = self._transport.line(self.replica, self._name)
        try:
            async for frame in frames:
                self._heard_s = loop.time()
                self._reported, self._begun = frame.in_flight, 0
                for stream, item in frame.items:
                    inbox = self._inboxes.get(stream)
                    if inbox is None:
                        continue
                    if isinstance(item, StreamEnd):  # a reader that is slow holds no replica back
                        inbox.ended = True
                        del self._inboxes[stream]
                    inbox.put(item)
                if not self._speaks:
                    self._speaks = True
                    self._changed()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.warning("a line to a model host broke: %s", type(error).__qualname__)
        finally:
            with contextlib.suppress(Exception):
                await frames.aclose()

    def _lose(self, error: ProductError) -> None:
        """Ends every stream of the line with an error that lets another replica go on."""
        self._speaks = False
        lost = tuple(self._inboxes)
        for inbox in self._inboxes.values():
            inbox.put(StreamEnd(error=error))
        if lost and self._reader is not None:
            self._start(self._drop(lost))  # should it wake up, it has nothing left to do for us
        self._changed()

    async def _begin(self, inbox: Inbox, admission: Admission, request: GenerationRequest) -> None:
        try:
            await self._transport.begin(self.replica, self._name, inbox.stream, admission, request)
        except ProductError as error:
            inbox.put(StreamEnd(error=error))
        except Exception as error:
            log.warning("a request did not reach its model host: %s", type(error).__qualname__)
            inbox.put(StreamEnd(error=ReplicaLost("The model host went away.", retry_after_s=1)))
        else:
            # Its reader may have left meanwhile, and what was said about that came before there was a stream.
            if inbox.stream not in self._inboxes and not inbox.ended:
                await self._drop((inbox.stream,))

    async def _drop(self, streams: tuple[str, ...]) -> None:
        with contextlib.suppress(Exception):
            await self._transport.drop(self.replica, self._name, streams)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

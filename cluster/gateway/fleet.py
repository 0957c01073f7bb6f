# SPDX-License-Identifier: Apache-2.0
"""The replicas of one base as a gateway sees them: lines, loads, and where a request goes.

A fleet keeps a line open to every replica that is announced. A request goes to the first replica of
``cluster.hosting.routing.route`` that takes it; one that is full is passed over. A line that falls silent or
breaks ends its streams with ``ReplicaLost``; a replica that leaves the announcements gets nothing new, may
finish what it has for ``drain_s``, and then gives the rest away. A fleet knows no Ray: it speaks through a
``Transport``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from cluster.errors import HostUnavailable
from cluster.gateway.wire import Inbox, Wire, WireTransport
from cluster.hosting.errors import HostOverloaded, ReplicaLost
from cluster.hosting.lines import StreamEnd
from cluster.hosting.messages import GenerationChunk, GenerationRequest, render_turns
from cluster.hosting.routing import ReplicaState, affinity_key, route
from cluster.office.protocol import Admission

log = logging.getLogger(__name__)


class Transport(WireTransport, Protocol):
    """How a fleet reaches replicas."""

    def listen(self, listener: Callable[[frozenset[str]], None]) -> None:
        """Tells which replicas there are, now and at every change, on any thread."""
        ...


class Fleet:
    """All replicas of one base.

    Args:
        transport: how they are reached.
        wait_s: how long a request waits for a replica to come where there is none.
        silence_s: a line that says nothing for so long is given up.
        drain_s: how long a replica that leaves may go on with what it has.
    """

    def __init__(
        self, transport: Transport, *, wait_s: float = 20.0, silence_s: float = 5.0, drain_s: float = 30.0
    ) -> None:
        self._transport = transport
        self._wait_s = wait_s
        self._silence_s = silence_s
        self._drain_s = drain_s
        self._wires: dict[str, Wire] = {}
        self._changed = asyncio.Condition()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        transport.listen(self._announced)

    @property
    def replicas(self) -> dict[str, int]:
        """Replicas that take requests, and how many choices each has, as far as is known."""
        return {name: wire.in_flight for name, wire in self._wires.items() if wire.takes}

    async def generate(
        self, admission: Admission, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Streams one answer from the replica that suits it best; closing ends it there.

        Raises:
            HostOverloaded: every replica is full.
            HostUnavailable: there is no replica, and none came in ``wait_s``.
            ReplicaLost: the replica went away; what was yielded so far stands.
            ProductError: the host's refusals.
        """
        wire, inbox, item = await self._place(admission, request)
        try:
            while not isinstance(item, StreamEnd):
                yield item
                item = await inbox.get()
            _raise(item)
        finally:
            wire.close(inbox)

    async def close(self) -> None:
        """Ends every line."""
        for wire in self._wires.values():
            wire.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    async def _place(
        self, admission: Admission, request: GenerationRequest
    ) -> tuple[Wire, Inbox, GenerationChunk | StreamEnd]:
        """Finds a replica that takes the request; answers with the first that came from it."""
        key = affinity_key(admission.deployment, admission.tenant, _beginning(request))
        overloaded: HostOverloaded | None = None
        for name in await self._order(key):
            wire = self._wires.get(name)
            if wire is None or not wire.takes:
                continue
            inbox = wire.open(admission, request)
            try:
                item = await inbox.get()
            except BaseException:
                wire.close(inbox)
                raise
            if isinstance(item, StreamEnd) and isinstance(item.error, HostOverloaded):
                wire.close(inbox)
                overloaded = item.error
                continue
            return wire, inbox, item
        raise overloaded or ReplicaLost("The model host went away. Ask again.", retry_after_s=1)

    async def _order(self, key: bytes) -> tuple[str, ...]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s), self._changed:
                await self._changed.wait_for(lambda: bool(self.replicas))
        states = [ReplicaState(name=name, in_flight=load) for name, load in self.replicas.items()]
        if not states:
            raise HostUnavailable(
                "No model host runs for this deployment at present. It starts by itself; ask again soon.",
                retry_after_s=2,
            )
        return route(key, states)

    def _announced(self, replicas: frozenset[str]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(self._follow, replicas)

    def _follow(self, replicas: frozenset[str]) -> None:
        for name in replicas - set(self._wires):
            wire = Wire(self._transport, name, silence_s=self._silence_s, changed=self._tell)
            self._wires[name] = wire
            task = asyncio.create_task(self._keep(wire))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for name, wire in self._wires.items():
            if name not in replicas:
                wire.leave(self._drain_s)

    async def _keep(self, wire: Wire) -> None:
        try:
            await wire.run()
        finally:
            if self._wires.get(wire.replica) is wire:
                del self._wires[wire.replica]

    def _tell(self) -> None:
        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.create_task(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _beginning(request: GenerationRequest) -> str | tuple[int, ...]:
    if request.prompt_token_ids is not None:
        return request.prompt_token_ids
    return request.prompt if request.prompt is not None else render_turns(request.turns or ())


def _raise(end: StreamEnd) -> None:
    if end.error is not None:
        raise end.error
    if end.fault:
        raise HostFault(end.fault)


class HostFault(Exception):
    """A host failed unexpectedly; the door hides this behind an error of its own."""

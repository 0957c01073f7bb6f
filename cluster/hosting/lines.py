# SPDX-License-Identifier: Apache-2.0
"""A host's side of its lines to the gateways: one message per step and gateway, whatever the streams.

A gateway keeps one line open to every replica and begins its requests beside it. All that a step sets free
for that gateway's requests leaves in one frame. A line that has nothing to say says so twice a second, so
that silence means that the replica is gone, paused or cut off. This module knows neither Ray nor what is
generated.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from cluster.hosting.errors import HostStopping
from cluster.hosting.messages import GenerationChunk, GenerationRequest
from cluster.office.protocol import Admission
from model_core.errors import ProductError

log = logging.getLogger(__name__)

#: How often a line speaks when there is nothing to say.
BEAT_S = 0.5
#: How often a gateway says that it still listens, and how long a host believes it without.
KEEP_S = 5.0
DEAF_S = 20.0

Generate = Callable[[Admission, GenerationRequest], AsyncGenerator[GenerationChunk, None]]


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """A stream has ended; ``error`` is why, if it did not end by itself.

    Attributes:
        error: a refusal, or None.
        fault: name of an unexpected error's class, empty otherwise; its text stays at the host.
    """

    error: ProductError | None = None
    fault: str = ""


Item = GenerationChunk | StreamEnd


@dataclass(frozen=True, slots=True)
class Frame:
    """What leaves a host at once.

    Attributes:
        in_flight: choices that the host computes or that wait there, of all gateways.
        items: (stream, what came of it), in order.
    """

    in_flight: int
    items: tuple[tuple[str, Item], ...] = ()

    def __reduce__(self) -> tuple[Callable[[bytes], Frame], tuple[bytes]]:
        """Crosses processes as bytes: what carries frames pickles objects several times as slowly."""
        return _unpacked, (pickle.dumps((self.in_flight, self.items), pickle.HIGHEST_PROTOCOL),)


def _unpacked(packed: bytes) -> Frame:
    return Frame(*pickle.loads(packed))  # noqa: S301  (as its carrier would, from the same process)


@dataclass(slots=True, eq=False)
class _Line:
    outbox: list[tuple[str, Item]] = field(default_factory=list)
    due: asyncio.Event = field(default_factory=asyncio.Event)
    streams: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    heard_s: float = 0.0

    def put(self, stream: str, item: Item) -> None:
        self.outbox.append((stream, item))
        self.due.set()


class Switchboard:
    """The lines of one host; lives on its event loop.

    Args:
        generate: answers a request.
        in_flight: choices that the host computes or that wait there.
        beat_s: how often a line speaks when there is nothing to say.
    """

    def __init__(
        self,
        generate: Generate,
        in_flight: Callable[[], int],
        *,
        beat_s: float = BEAT_S,
        deaf_s: float = DEAF_S,
    ) -> None:
        self._generate = generate
        self._in_flight = in_flight
        self._beat_s = beat_s
        self._deaf_s = deaf_s
        self._lines: dict[str, _Line] = {}
        self.tokens = 0

    async def line(self, name: str) -> AsyncGenerator[Frame, None]:
        """Frames for one gateway; ending the generator ends its streams."""
        line = self._lines.setdefault(name, _Line())
        loop = asyncio.get_running_loop()
        line.heard_s = loop.time()
        try:
            yield Frame(self._in_flight())
            while loop.time() - line.heard_s < self._deaf_s:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._beat_s):
                        await line.due.wait()
                # Streams of the same step are woken together; one turn later all have put what they have.
                await asyncio.sleep(0)
                line.due.clear()
                items, line.outbox = tuple(line.outbox), []
                yield Frame(self._in_flight(), items)
        finally:
            self._lines.pop(name, None)
            for task in line.streams.values():
                task.cancel()

    async def begin(self, name: str, stream: str, admission: Admission, request: GenerationRequest) -> None:
        """Begins a stream on a line that is open.

        Raises:
            HostStopping: nobody listens on that line.
        """
        line = self._lines.get(name)
        if line is None:
            raise HostStopping("The line to this model host has ended; ask again.", retry_after_s=1)
        line.streams[stream] = asyncio.create_task(self._carry(line, stream, admission, request))

    def keep(self, name: str) -> None:
        """Notes that somebody still listens on a line."""
        line = self._lines.get(name)
        if line is not None:
            line.heard_s = asyncio.get_running_loop().time()

    def drop(self, name: str, streams: tuple[str, ...]) -> None:
        """Ends streams that nobody reads any more."""
        line = self._lines.get(name)
        for stream in streams if line is not None else ():
            # Taken out here: a stream that is ended before its first turn has none in which to do so itself.
            task = line.streams.pop(stream, None) if line is not None else None
            if task is not None:
                task.cancel()

    async def _carry(
        self, line: _Line, stream: str, admission: Admission, request: GenerationRequest
    ) -> None:
        end = StreamEnd()
        left = request.max_tokens * len(request.open_choices)
        self.tokens += left
        chunks = self._generate(admission, request)
        try:
            async for chunk in chunks:
                said = min(left, len(chunk.token_ids))
                left -= said
                self.tokens -= said
                line.put(stream, chunk)
        except ProductError as error:
            end = StreamEnd(error=error)
        except Exception as error:
            # Without its text and its values, which may quote a prompt.
            log.error("a stream failed with %s", type(error).__qualname__)  # noqa: TRY400
            end = StreamEnd(fault=type(error).__qualname__)
        finally:
            self.tokens -= left
            line.streams.pop(stream, None)
            await chunks.aclose()
            line.put(stream, end)

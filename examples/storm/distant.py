# SPDX-License-Identifier: Apache-2.0
"""A client as on a machine of its own: notes when bytes come, and reads them once nothing is measured.

Reading an answer's events takes a client half a millisecond of processor time each, and asking anew two. On
the marketplace's own cores that would come out of the steps whose pace is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import h11

from examples.storm.streams import COMPLETIONS, Answer, Crowd, Endpoints, Load, Refused, asked, refusal, take


@dataclass(kw_only=True, slots=True)
class Heard:
    """What came over a connection.

    Attributes:
        pieces: wall time and bytes, as they came.
        broken: the kind of the error that ended it; empty where the server did.
    """

    pieces: list[tuple[int, bytes]] = field(default_factory=list)
    broken: str = ""

    @property
    def refused(self) -> bool:
        """Whether an answer came with another status than 200."""
        return bool(self.pieces) and not self.pieces[0][1].startswith(b"HTTP/1.1 200 ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """An answer read.

    Attributes:
        status: of HTTP.
        headers: by lower-case name.
        events: wall time at which the end of each came, and its document; of a refusal the whole body.
        complete: the answer came to its end.
    """

    status: int
    headers: Mapping[str, str]
    events: tuple[tuple[int, dict[str, Any]], ...]
    complete: bool


async def call(url: str, key: str, path: str, body: Mapping[str, Any], heard: Heard) -> None:
    """Posts over a connection of its own, and listens to its end.

    Args:
        url: of the server.
        key: API key.
        path: of the route.
        body: a document.
        heard: filled as bytes come.
    """
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    transport: asyncio.Transport | None = None
    try:
        transport, ear = await loop.create_connection(
            lambda: _Ear(heard), str(address.hostname), address.port or 80
        )
        transport.write(_request(address.netloc, key, path, json.dumps(body).encode()))
        await ear.ended
    except OSError as error:
        heard.broken = type(error).__name__
    finally:
        if transport is not None:
            transport.close()
    if not heard.pieces:
        heard.broken = heard.broken or "NothingCame"


def ask_from_afar(url: str, key: str, answer: Answer, body: Mapping[str, Any]) -> None:
    """Streams one answer, and reads its events once it has ended.

    Args:
        url: of the server.
        key: API key.
        answer: filled at the end; not ended if the connection broke.
        body: of the request, without model and stream.

    Raises:
        Refused: the API said no, before or in the middle.
    """
    heard = Heard()
    asyncio.run(call(url, key, COMPLETIONS, asked(answer, body), heard))
    _fill(answer, read(heard))


def _fill(answer: Answer, got: Read) -> None:
    if got.status >= 400 and got.complete:
        raise refusal(got.events[0][1], got.status, got.headers)
    for at_us, event in got.events:
        take(answer, event, at_us)


def read(heard: Heard) -> Read:
    """Reads what was heard."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="POST", target="/", headers=[("Host", "any"), ("Content-Length", "0")]))
    http.send(h11.EndOfMessage())
    status, headers, body, complete = 0, {}, bytearray(), False
    events: list[tuple[int, dict[str, Any]]] = []
    # Where it was broken off in the middle, what came until then counts.
    with contextlib.suppress(h11.RemoteProtocolError):
        for at_us, piece in (*heard.pieces, (0, b"")):
            http.receive_data(piece)
            for part in _parts(http):
                if isinstance(part, h11.Response):
                    status = part.status_code
                    headers = {name.decode().lower(): value.decode() for name, value in part.headers}
                elif isinstance(part, h11.Data):
                    body += part.data
                    if status == 200:
                        events += ((at_us, event) for event in _events(body))
                elif isinstance(part, h11.EndOfMessage):
                    complete = True
    if status != 200 and complete:
        events.append((heard.pieces[-1][0], json.loads(bytes(body))))
    return Read(status=status, headers=headers, events=tuple(events), complete=complete)


def _request(host: str, key: str, path: str, body: bytes) -> bytes:
    http = h11.Connection(h11.CLIENT)
    headers = {
        "Host": host,
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    parts = (h11.Request(method="POST", target=path, headers=[*headers.items()]), h11.Data(data=body))
    return b"".join(http.send(part) or b"" for part in (*parts, h11.EndOfMessage()))


def _parts(http: h11.Connection) -> Iterator[h11.Event]:
    while True:
        part = http.next_event()
        if part in (h11.NEED_DATA, h11.PAUSED) or isinstance(part, h11.ConnectionClosed):
            return
        assert not isinstance(part, type)  # noqa: S101  (the two markers are out)
        yield part


def _events(body: bytearray) -> Iterator[dict[str, Any]]:
    """Takes whole events out of what came so far, ``[DONE]`` left out."""
    while (end := body.find(b"\n\n")) >= 0:
        event = bytes(body[:end])
        del body[: end + 2]
        if event.startswith(b"data: {"):
            yield json.loads(event.removeprefix(b"data: "))


class _Ear(asyncio.Protocol):
    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._heard.pieces.append((time.time_ns() // 1000, data))

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._heard.broken = type(exc).__name__
        if not self.ended.done():
            self.ended.set_result(None)


class DistantCrowd(Crowd):
    """Clients as on a machine of their own; their answers are there once it has stopped."""

    def __init__(self, url: str, keys: dict[str, str], endpoints: Endpoints, load: Load) -> None:
        super().__init__(url, keys, endpoints, load)
        self._heard: list[tuple[Answer, Heard]] = []
        self._open: dict[int, Heard] = {}

    @property
    def flowing(self) -> int:
        """Streams of which something came after the beginning, and that have not ended."""
        return sum(len(heard.pieces) > 1 for heard in list(self._open.values()))

    def stop(self, timeout_s: float = 120.0) -> None:
        """Lets every open stream come to its end, opens no more, and reads what came."""
        super().stop(timeout_s)
        for answer, heard in self._heard:
            got = read(heard)
            try:
                _fill(answer, got)
            except Refused as refused:
                answer.failed = refused.code
            if not got.complete:
                answer.failed = heard.broken or "Incomplete"
        self.answers.extend(answer for answer, _ in self._heard)

    def _work(self) -> None:
        # This thread alone. Who may not have it measures what the kernel makes clients wait, too.
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        super()._work()

    async def _ask(self, key: str, answer: Answer, body: dict[str, Any], leave_after: int) -> None:
        assert not leave_after, "Nothing is read before the end, so nobody can leave."  # noqa: S101
        heard = self._open[id(answer)] = Heard()
        try:
            await call(self._url, key, COMPLETIONS, asked(answer, body), heard)
        finally:
            del self._open[id(answer)]
        if heard.refused:
            _fill(answer, read(heard))
        self._heard.append((answer, heard))

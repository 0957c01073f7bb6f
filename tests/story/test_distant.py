# SPDX-License-Identifier: Apache-2.0
"""Clients that read later know the same as clients that read at once."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from examples.storm.distant import DistantCrowd
from examples.storm.streams import Answer, Load

APART_S = 0.08


def _event(*tokens: str, **more: Any) -> bytes:
    choice = {"logprobs": {"tokens": list(tokens)}}
    body = {"id": "cmpl-req_1", "choices": [choice] if tokens else [], **more}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n"


ACCOUNT = {"marketplace": {"segments": [{"experts": {}}]}}
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TORN = _chunk(_event("well"))
WHOLE = [
    HEAD + _chunk(_event("sleeps")),
    TORN[:30],
    TORN[30:],
    _chunk(_event(**ACCOUNT)) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n",
]
BROKEN = WHOLE[:1]
REFUSAL = json.dumps({"error": {"code": "host_overloaded"}}).encode()
BUSY = [b"HTTP/1.1 503 Busy\r\nRetry-After: 0.01\r\nContent-Length: %d\r\n\r\n" % len(REFUSAL) + REFUSAL]
ERROR = [HEAD + _chunk(_event("a")) + _chunk(b'data: {"error": {"code": "lost"}}\n\n') + b"0\r\n\r\n"]


@contextmanager
def _server(answers: list[list[bytes]]) -> Iterator[str]:
    """Gives these answers in turn, then the first of them for ever, pausing between the pieces of each."""
    loop, ready, port = asyncio.new_event_loop(), threading.Event(), 0
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        for piece in left.pop(0) if left else answers[0]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(APART_S)
        writer.close()

    async def serve() -> None:
        nonlocal port
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        ready.set()

    thread = threading.Thread(target=lambda: (loop.run_until_complete(serve()), loop.run_forever()))
    thread.start()
    ready.wait(10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _heard(answers: list[list[bytes]]) -> tuple[list[Answer], DistantCrowd]:
    """What one client makes of these answers."""
    with _server(answers) as url:
        crowd = DistantCrowd(url, {"acme": "mk"}, {"desk": ("acme", ())}, Load(streams=1))
        crowd.start()
        end_s = time.monotonic() + 20
        while not crowd.flowing and time.monotonic() < end_s:
            time.sleep(0.005)
        time.sleep(APART_S)
        crowd.stop()
    return crowd.answers, crowd


def test_tokens_count_from_when_they_were_whole() -> None:
    """An event that came in two pieces came with the second."""
    answers, _ = _heard([WHOLE])
    first = answers[0]
    assert (first.tokens, first.ended, first.failed, first.request_id) == (
        ["sleeps", "well"],
        True,
        "",
        "req_1",
    )
    assert first.arrivals_us[1] - first.arrivals_us[0] > 1.8e6 * APART_S


def test_whoever_is_told_to_come_again_does() -> None:
    """A refusal for want of room is no failure."""
    answers, crowd = _heard([BUSY, WHOLE, WHOLE])
    assert crowd.busy["host_overloaded"] == 1
    assert {one.failed for one in answers} == {""}


def test_what_breaks_off_is_a_failure_and_keeps_what_came() -> None:
    """Whether the connection ends, or an event says so."""
    answers, _ = _heard([BROKEN, WHOLE])
    assert (answers[0].tokens, answers[0].failed, answers[0].ended) == (["sleeps"], "Incomplete", False)
    answers, _ = _heard([ERROR, WHOLE])
    assert (answers[0].tokens, answers[0].failed, answers[0].ended) == (["a"], "lost", False)

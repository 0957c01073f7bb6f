# SPDX-License-Identifier: Apache-2.0
"""Epochs over HTTP: snapshots under entity tags, and a stream of publications.

The stream is for whoever keeps something that depends on the register: each event is one epoch, its id is
the epoch's number, and a client that comes back with ``Last-Event-ID`` misses none. However many streams are
open, the office is asked for its epoch at one pace; what a stream sends is read with its own key, so that a
revoked key ends its stream within a heartbeat. It does not say what an epoch changed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.errors import InvalidRequest
from cluster.gateway.door import Door
from cluster.gateway.errors import TooManyRequests
from cluster.gateway.generation import EventStream
from cluster.gateway.management import PREFIX, merge
from cluster.gateway.sessions import bearer
from cluster.gateway.tags import entity_tag, matches
from cluster.operations.table import Operation
from cluster.problems import problem_of
from model_core.errors import ProductError

MAX_STREAMS = 64
LONGEST_S = 3600.0
_BATCH = 100


def add_epochs(
    app: FastAPI,
    door: Door,
    operations: Mapping[str, Operation],
    *,
    look_s: float = 0.25,
    heartbeat_s: float = 5.0,
) -> None:
    """Adds both routes.

    Args:
        app: the application; the routes that are made of the table come after these.
        door: the gateway's wiring.
        operations: the table.
        look_s: how often the office is asked for its epoch while somebody listens.
        heartbeat_s: longest silence of a stream, and between two looks at its key.
    """
    feed = EpochFeed(door, look_s=look_s, heartbeat_s=heartbeat_s)

    async def snapshot(request: Request) -> Response:
        credential = bearer(request)
        number = merge(dict(request.query_params), dict(request.path_params))
        told = await door.office.call("epochs.show", credential, number)
        headers = {"ETag": entity_tag(told["snapshot_digest"])}
        await door.authorise(credential, operations["epochs.snapshot"])
        if matches(request.headers.get("if-none-match"), told["snapshot_digest"]):
            return Response(status_code=304, headers=headers)
        answer = await door.office.call("epochs.snapshot", credential, number)
        return JSONResponse(answer, headers=headers)

    async def stream(request: Request) -> Response:
        credential = bearer(request)
        await door.office.identify(credential)
        after = _after(request)
        feed.take_place()
        return EventStream(feed.events(credential, after), feed.leave, {}, LONGEST_S)

    app.add_api_route(f"{PREFIX}/epochs/stream", stream, methods=["GET"], include_in_schema=False)
    app.add_api_route(PREFIX + "/epochs/{epoch}/snapshot", snapshot, methods=["GET"], include_in_schema=False)


class EpochFeed:
    """Every open stream of one gateway, and the one look at the office that all of them share."""

    def __init__(self, door: Door, *, look_s: float, heartbeat_s: float) -> None:
        self._door = door
        self._look_s = look_s
        self._heartbeat_s = heartbeat_s
        self._open = 0
        self._epoch = -1
        self._changed = asyncio.Condition()
        self._looking: asyncio.Task[None] | None = None

    def take_place(self) -> None:
        """Takes one of the places for streams.

        Raises:
            TooManyRequests: all are taken.
        """
        if self._open >= MAX_STREAMS:
            raise TooManyRequests(
                "Every place for a stream of epochs is taken. Ask GET /api/v1/epochs?after= meanwhile.",
                retry_after_s=self._heartbeat_s,
            )
        self._open += 1

    async def leave(self) -> None:
        """Gives a place back; with the last one the looking ends."""
        self._open -= 1
        if not self._open and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def events(self, credential: str, after: int) -> AsyncIterator[bytes]:
        """Yields the epochs above a number as they are published."""
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._look())
        yield b"retry: 1000\n\n"
        while True:
            try:
                asked = {"after": after, "limit": _BATCH}
                told = await self._door.office.call("epochs.since", credential, asked)
            except ProductError as error:
                yield _event("problem", problem_of(error).document())
                return
            for row in told["items"]:
                after = row["epoch"]
                yield b"id: %d\n" % after + _event("epoch", row)
            if not told["items"] and not await self._above(after):
                yield b": still here\n\n"

    async def _above(self, epoch: int) -> bool:
        """Waits at most a heartbeat for an epoch above the given one."""
        async with self._changed:
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await self._changed.wait_for(lambda: self._epoch > epoch)
            except TimeoutError:
                return False
        return True

    async def _look(self) -> None:
        while True:
            try:
                health = await self._door.office.health()
            except ProductError:
                health = None  # streams find out by themselves when they next use their key
            if health is not None and health.epoch != self._epoch:
                async with self._changed:
                    self._epoch = health.epoch
                    self._changed.notify_all()
            await asyncio.sleep(self._look_s)


def _event(kind: str, document: dict[str, Any]) -> bytes:
    text = json.dumps(document, separators=(",", ":"))
    return f"event: {kind}\ndata: {text}\n\n".encode()


def _after(request: Request) -> int:
    """Where the stream begins: what the client saw last, else what it asks for, else the very first epoch."""
    if unknown := sorted(request.query_params.keys() - {"after"}):
        raise InvalidRequest(
            f"The stream of epochs takes the field after alone, not {unknown[0][:80]!r}.", fields=unknown
        )
    text = request.headers.get("last-event-id") or request.query_params.get("after", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise InvalidRequest(
            "Say the last epoch that you have seen as a number, in after or in Last-Event-ID.",
            fields=[{"field": "after", "reason": "is not the number of an epoch"}],
        )
    return int(text)

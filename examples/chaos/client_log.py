# SPDX-License-Identifier: Apache-2.0
"""The clients' own log of what they asked, what they were told and what they received.

It lies outside the marketplace and is the only witness that the oracle believes: whatever an answer in this
log says must be true after every crash. A line is on the disk before the call it announces is sent, and
before anybody acts on the answer it records. Secrets are left out.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.client import MarketplaceClient
from cluster.errors import GatewayUnreachable
from cluster.problems import problem_of
from model_core.errors import ProductError

_SECRETS = frozenset({"secret"})


@dataclass(kw_only=True)
class Call:
    """One call as the log tells it.

    Attributes:
        number: order of sending.
        who: the person.
        operation: name in the table of operations.
        fields: what was sent.
        key: idempotency key, empty if none.
        outcome: ``sent`` (nothing came back), ``acknowledged`` or ``refused``.
        answer: the document of an acknowledgement.
        code: of a refusal.
    """

    number: int
    who: str
    operation: str
    fields: dict[str, Any]
    key: str = ""
    outcome: str = "sent"
    answer: dict[str, Any] = field(default_factory=dict)
    code: str = ""


@dataclass(kw_only=True)
class Received:
    """One streamed request: tokens that reached the client, and whether the stream came to its end."""

    number: int
    max_tokens: int
    request_id: str = ""
    tokens: int = 0
    ended: bool = False


class ClientLog:
    """Appends; one line per event, each on the disk before ``append`` returns.

    Args:
        path: the file; created if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._mutex = threading.Lock()
        self._numbers = itertools.count(1)

    def append(self, kind: str, **facts: Any) -> None:
        """Writes one event."""
        line = json.dumps({"kind": kind, "at_us": time.time_ns() // 1000, **facts}).encode() + b"\n"
        with self._mutex:
            os.write(self._descriptor, line)
            os.fsync(self._descriptor)

    def number(self) -> int:
        """A number that no other call has."""
        with self._mutex:
            return next(self._numbers)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


class Person:
    """Somebody who writes down every call.

    Args:
        name: for the log.
        connect: opens a connection; one is opened anew after every crash.
        log: where it is written down.
    """

    def __init__(self, name: str, connect: Callable[[], MarketplaceClient], log: ClientLog) -> None:
        self.name = name
        self._connect = connect
        self._log = log
        self._client = connect()

    def call(self, operation: str, *, key: str | None = None, **fields: Any) -> dict[str, Any]:
        """Calls an operation and writes down both sides of it.

        Raises:
            ProductError: the refusal; ``GatewayUnreachable`` if nothing came back.
        """
        number = self._log.number()
        self._log.append(
            "sent", number=number, who=self.name, operation=operation, fields=fields, key=key or ""
        )
        return self._noted(number, lambda: self._client.call(operation, idempotency_key=key, **fields))

    def upload(self, operation: str, file: Path, **fields: Any) -> dict[str, Any]:
        """Uploads a file and writes down both sides of it."""
        number = self._log.number()
        self._log.append("sent", number=number, who=self.name, operation=operation, fields=fields, key="")
        return self._noted(number, lambda: self._client.upload(operation, file, **fields))

    def read(self, operation: str, **fields: Any) -> dict[str, Any]:
        """Looks something up; reading promises nothing, so it is not written down."""
        return self._client.call(operation, **fields)

    def reconnect(self) -> None:
        """Drops the connections that a crash has left behind."""
        self._client.close()
        self._client = self._connect()

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _noted(self, number: int, send: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            answer = send()
        except GatewayUnreachable:
            raise
        except ProductError as error:
            # A server error says nothing about what was done, so the call stays unanswered in the log.
            if problem_of(error).status < 500:
                self._log.append("refused", number=number, code=error.code)
            raise
        told = {name: value for name, value in answer.items() if name not in _SECRETS}
        self._log.append("acknowledged", number=number, answer=told)
        return answer


@dataclass(kw_only=True)
class Told:
    """Everything the log says.

    Attributes:
        calls: in order of sending.
        streams: streamed requests.
        interrupted: jobs that were in training when everything was killed.
        curves: loss by step, as the owner saw it before the crash; by job.
    """

    calls: list[Call]
    streams: list[Received]

    interrupted: set[str]
    curves: dict[str, dict[int, float]]

    def acknowledged(self, *operations: str) -> Iterator[Call]:
        """Acknowledged calls of some operations, in order of sending."""
        return (one for one in self.calls if one.outcome == "acknowledged" and one.operation in operations)

    def acts(self, *operations: str) -> list[list[Call]]:
        """Sendings of the same act together: a call that was sent again under its key is still one act."""
        groups: dict[tuple[str, str], list[Call]] = {}
        for one in self.calls:
            if one.operation in operations:
                groups.setdefault((one.who, one.key or str(one.number)), []).append(one)
        return list(groups.values())

    def bounds(self, *operations: str) -> tuple[int, int]:
        """How many acts must have been done, and how many may have been."""
        acts = self.acts(*operations)
        sure = sum(any(one.outcome == "acknowledged" for one in act) for act in acts)
        possible = sum(any(one.outcome != "refused" for one in act) for act in acts)
        return sure, possible


def read_log(path: Path) -> Told:
    """Reads a log from the disk, as somebody would who was not there."""
    calls: dict[int, Call] = {}
    streams: dict[int, Received] = {}
    interrupted: set[str] = set()
    curves: dict[str, dict[int, float]] = {}
    for line in path.read_bytes().splitlines():
        event = json.loads(line)
        number = int(event.get("number", 0))
        match event["kind"]:
            case "sent":
                calls[number] = Call(
                    number=number,
                    who=event["who"],
                    operation=event["operation"],
                    fields=event["fields"],
                    key=event["key"],
                )
            case "acknowledged":
                calls[number].outcome, calls[number].answer = "acknowledged", event["answer"]
            case "refused":
                calls[number].outcome, calls[number].code = "refused", event["code"]
            case "asked":
                streams[number] = Received(number=number, max_tokens=event["max_tokens"])
            case "received" | "ended":
                one = streams[number]
                one.request_id, one.tokens = event["request_id"], event["tokens"]
                one.ended = one.ended or event["kind"] == "ended"
            case "seen":
                curve = curves.setdefault(event["job_id"], {})
                curve.update({int(step): float(value) for step, value in event["loss"]})
            case "interrupted":
                interrupted.add(event["job_id"])
    return Told(
        calls=list(calls.values()), streams=list(streams.values()), interrupted=interrupted, curves=curves
    )

# SPDX-License-Identifier: Apache-2.0
"""Holds many completions open at once and notes what each of them saw.

The counts kept here are the clients' own: nothing is read back from the marketplace, so they can be held
against its ledger afterwards.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.client import MarketplaceClient
from examples.demo.results import StreamTrace
from model_core.errors import ProductError


@dataclass(kw_only=True)
class OpenStream:
    """One completion that is being received in a thread of its own."""

    index: int
    prompt: str
    arrivals_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    account: dict[str, Any] = field(default_factory=dict)
    failed: str | None = None
    finished: bool = False

    @property
    def received(self) -> int:
        """Tokens received so far, by the client's own count."""
        return sum(self.tokens)


class StreamSet:
    """Opens one stream per prompt.

    Args:
        connect: makes a client; every stream has a connection of its own.
        model: the deployment.
        max_tokens: tokens each stream asks for.
    """

    def __init__(self, connect: Callable[[], MarketplaceClient], *, model: str, max_tokens: int) -> None:
        self._connect = connect
        self._model = model
        self._max_tokens = max_tokens
        self._threads: list[threading.Thread] = []
        self.streams: list[OpenStream] = []
        self.started = 0.0

    def open(self, prompts: Sequence[str]) -> None:
        """Opens all streams; returns at once."""
        self.started = time.monotonic()
        self.streams = [OpenStream(index=index, prompt=prompt) for index, prompt in enumerate(prompts)]
        self._threads = [
            threading.Thread(target=self._receive, args=(stream,), daemon=True) for stream in self.streams
        ]
        for thread in self._threads:
            thread.start()

    def wait_until_each_has(self, tokens: int, *, timeout_s: float) -> bool:
        """Waits until every stream has received that many tokens."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if all(stream.received >= tokens for stream in self.streams):
                return True
            if any(stream.failed for stream in self.streams):
                return False
            time.sleep(0.02)
        return False

    def still_open(self) -> int:
        """How many streams have begun and not ended."""
        return sum(
            1 for stream in self.streams if stream.received and not stream.finished and not stream.failed
        )

    def join(self, *, timeout_s: float) -> None:
        """Waits for all streams to end."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for stream in self.streams:
            if not stream.finished and stream.failed is None:
                stream.failed = "never_ended"

    def traces(self, *, withdrawn: str, epoch: int) -> list[StreamTrace]:
        """What each stream's own account says about the tokens before and after an epoch."""
        return [_trace(stream, withdrawn=withdrawn, epoch=epoch) for stream in self.streams]

    def _receive(self, stream: OpenStream) -> None:
        body = {
            "model": self._model,
            "prompt": stream.prompt,
            "max_tokens": self._max_tokens,
            "temperature": 0.8,
            "seed": 1000 + stream.index,
            "stream": True,
            "ignore_eos": True,
            "logprobs": 0,
        }
        try:
            with self._connect() as client:
                for event in client.stream("/v1/completions", body):
                    self._note(stream, event)
            stream.finished = True
        except ProductError as error:
            stream.failed = error.code
        except Exception as error:
            # A stream that breaks in any other way is a failed request too; it must not vanish in a thread.
            stream.failed = type(error).__name__

    def _note(self, stream: OpenStream, event: dict[str, Any]) -> None:
        count = 0
        for choice in event.get("choices", []):
            stream.text += choice.get("text", "")
            count += len((choice.get("logprobs") or {}).get("tokens", ()))
        if count:
            stream.arrivals_s.append(time.monotonic() - self.started)
            stream.tokens.append(count)
        if event.get("marketplace"):
            stream.account = event["marketplace"]


def _trace(stream: OpenStream, *, withdrawn: str, epoch: int) -> StreamTrace:
    before = [part for part in stream.account.get("segments", []) if part["epoch"] < epoch]
    after = [part for part in stream.account.get("segments", []) if part["epoch"] >= epoch]
    return StreamTrace(
        index=stream.index,
        arrivals_s=tuple(stream.arrivals_s),
        tokens=tuple(stream.tokens),
        failed=stream.failed,
        before_tokens=_tokens(before),
        before_weight_ppm=_weight(before, {withdrawn}),
        after_tokens=_tokens(after),
        after_weight_ppm=_weight(after, {withdrawn}),
        after_private_ppm=sum(
            weight
            for part in after
            for name, weight in part["experts"].items()
            if name not in {"public", withdrawn}
        ),
    )


def _tokens(segments: list[dict[str, Any]]) -> int:
    return sum(part["to_token"] - part["from_token"] for part in segments)


def _weight(segments: list[dict[str, Any]], names: set[str]) -> int:
    return sum(weight for part in segments for name, weight in part["experts"].items() if name in names)

# SPDX-License-Identifier: Apache-2.0
"""A streamed request in a thread of its own, counting what really reached the client."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from model_core.errors import ProductError

if TYPE_CHECKING:
    from examples.chaos.stage import Stage

_PREFIX = "cmpl-"


class Asking(threading.Thread):
    """One consumer that waits for an answer.

    Args:
        stage: where it asks.
        tokens: how many it asks for.
        seed: makes prompts differ.
    """

    def __init__(self, stage: Stage, *, tokens: int, seed: int) -> None:
        super().__init__(name=f"asking-{seed}", daemon=True)
        self._stage = stage
        self._tokens = tokens
        self._seed = seed
        self._number = stage.log.number()
        self.request_id = ""
        self.received = 0
        self.ended = False
        self.failed = ""
        self._finished = False

    def run(self) -> None:
        """Receives until the end, or until the connection breaks."""
        self._stage.log.append("asked", number=self._number, max_tokens=self._tokens)
        try:
            with self._stage.connect("dev", timeout_s=60.0) as client:
                for event in client.stream(
                    "/v1/completions", self._stage.stream_body(tokens=self._tokens, seed=self._seed)
                ):
                    self._take(event)
            self.ended = self._finished
        except ProductError as error:
            self.failed = error.code
        except Exception as error:
            # However a stream breaks, what it had received counts.
            self.failed = type(error).__name__
        self._write("ended" if self.ended else "received")

    def _take(self, event: dict[str, Any]) -> None:
        first = not self.request_id
        self.request_id = str(event["id"]).removeprefix(_PREFIX)
        for choice in event["choices"]:
            self.received += len((choice.get("logprobs") or {}).get("tokens", ()))
            self._finished = self._finished or choice.get("finish_reason") is not None
        if first:
            self._write("received")

    def _write(self, kind: str) -> None:
        self._stage.log.append(kind, number=self._number, request_id=self.request_id, tokens=self.received)

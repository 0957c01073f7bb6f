# SPDX-License-Identifier: Apache-2.0
"""Many clients that hold streams open all the time and remember what reached them, and when.

Nothing is read back from the marketplace: an answer is known by its own events alone, so it can be held
against ledger, journals and recorder afterwards.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

COMPLETIONS = "/v1/completions"

#: Deployment to (consumer tenant, expert names).
Endpoints = dict[str, tuple[str, tuple[str, ...]]]

_BUSY = frozenset({429, 503})
_LONGEST_PAUSE_S = 1.0


@dataclass(kw_only=True, slots=True)
class Answer:
    """One request as its client saw it.

    Attributes:
        endpoint: which deployment.
        request_id: as the answer names it.
        arrivals_us: wall time of every token, in order.
        tokens: their texts.
        margins: by how much each token's logprob led the runner-up; empty unless asked for.
        segments: the account of the last event.
        continued_as: further requests behind it, if replicas were lost on the way.
        ended: the stream came to its end.
        failed: the code it broke with.
        at_us: wall time at which it ended or broke.
        began_us: wall time before it was asked for.
    """

    endpoint: str
    request_id: str = ""
    arrivals_us: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    continued_as: tuple[str, ...] = ()
    ended: bool = False
    failed: str = ""
    at_us: int = 0
    began_us: int = field(default_factory=lambda: time.time_ns() // 1000)


class Refused(RuntimeError):
    """An error of the API, by its code."""

    def __init__(self, code: str, status: int, retry_after_s: float) -> None:
        super().__init__(code)
        self.code, self.status, self.retry_after_s = code, status, retry_after_s


async def ask(
    http: httpx.AsyncClient, key: str, answer: Answer, body: dict[str, Any], *, leave_after: int = 0
) -> None:
    """Streams one answer into ``answer``.

    Args:
        http: connections.
        key: API key.
        answer: filled as events come.
        body: of the request, without model and stream.
        leave_after: hang up after so many tokens; 0 stays to the end.

    Raises:
        Refused: the API said no, before or in the middle.
        httpx.TransportError: the connection broke.
    """
    headers = {"Authorization": f"Bearer {key}"}
    async with http.stream("POST", COMPLETIONS, json=asked(answer, body), headers=headers) as got:
        if got.status_code >= 400:
            await got.aread()
            raise refusal(got.json(), got.status_code, got.headers)
        async for line in got.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                answer.ended = bool(answer.segments) or answer.ended
                return
            take(answer, json.loads(line[6:]), time.time_ns() // 1000)
            if leave_after and len(answer.tokens) >= leave_after:
                return


def asked(answer: Answer, body: Mapping[str, Any]) -> dict[str, Any]:
    """The whole body of a request."""
    fixed = {"model": answer.endpoint, "stream": True}
    return {"logprobs": 0, "temperature": 0, "ignore_eos": True, **body, **fixed}


def take(answer: Answer, event: dict[str, Any], at_us: int) -> None:
    """Adds what an event says, which came at a wall time.

    Raises:
        Refused: it says that the answer broke off.
    """
    if "error" in event:
        raise refusal(event, 200, {})
    answer.request_id = str(event["id"]).removeprefix("cmpl-")
    for choice in event["choices"]:
        found = choice.get("logprobs") or {}
        tokens = found.get("tokens", ())
        answer.tokens.extend(tokens)
        answer.arrivals_us.extend([at_us] * len(tokens))
        for top in found.get("top_logprobs") or ():
            best = sorted((top or {}).values(), reverse=True)
            if len(best) > 1:
                answer.margins.append(best[0] - best[1])
    if event.get("marketplace"):
        answer.segments = event["marketplace"]["segments"]
        answer.continued_as = tuple(event["marketplace"].get("continued_as") or ())
        answer.ended = True


def refusal(document: Mapping[str, Any], status: int, headers: Mapping[str, str]) -> Refused:
    """An error of the API, from its document; headers are asked for in lower case."""
    error = document.get("error") or {}
    return Refused(str(error.get("code")), status, float(headers.get("retry-after", 0.2)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What the clients ask for.

    Attributes:
        streams: how many are open at the same time.
        tokens: fewest and most tokens of an answer.
        prompts: what is asked; repeated, so that prefixes can be used again.
        leaving: share of answers whose client hangs up in the middle.
        seed: of the clients' choices.
    """

    streams: int
    tokens: tuple[int, int] = (40, 72)
    prompts: tuple[str, ...] = ("def wrap(text, width):\n    lines = []\n", "import re\n\nclass Text:\n")
    leaving: float = 0.0
    seed: int = 1


class Crowd:
    """Clients in a thread of their own.

    Args:
        url: of the gateway.
        keys: API key by consumer tenant.
        endpoints: deployment to (consumer tenant, expert names).
        load: what they ask for.
    """

    def __init__(self, url: str, keys: dict[str, str], endpoints: Endpoints, load: Load) -> None:
        self._url, self._keys, self._endpoints, self._load = url, keys, endpoints, load
        self._stopping = False
        self._http: httpx.AsyncClient | None = None
        self._thread = threading.Thread(target=self._work, name="crowd", daemon=True)
        self.answers: list[Answer] = []
        self.open: set[int] = set()
        self.busy: Counter[str] = Counter()
        self.live: dict[int, Answer] = {}
        self.excused = False  # set while a host is being hurt on purpose: a broken stream is asked again

    def start(self) -> None:
        """Opens all streams, over a second or so."""
        self._thread.start()

    def stop(self, timeout_s: float = 120.0) -> None:
        """Lets every open stream come to its end and opens no more."""
        self._stopping = True
        self._thread.join(timeout_s)

    @property
    def flowing(self) -> int:
        """Streams that have received a token and not ended."""
        return sum(1 for answer in list(self.live.values()) if answer.tokens)

    def uses(self, expert: str, since_us: int) -> bool:
        """Whether an open answer that was asked for since then flows at an endpoint with this expert."""
        return any(
            answer.tokens and answer.began_us > since_us and expert in self._endpoints[answer.endpoint][1]
            for answer in list(self.live.values())
        )

    def _work(self) -> None:
        asyncio.run(self._run())

    async def _ask(self, key: str, answer: Answer, body: dict[str, Any], leave_after: int) -> None:
        assert self._http is not None  # noqa: S101
        await ask(self._http, key, answer, body, leave_after=leave_after)

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._load.streams)
        async with httpx.AsyncClient(
            base_url=self._url, timeout=60, trust_env=False, limits=limits
        ) as self._http:
            clients = (self._client(number) for number in range(self._load.streams))
            await asyncio.gather(*clients)

    async def _client(self, number: int) -> None:
        chance = random.Random(f"{self._load.seed} {number}")  # noqa: S311  (choices, not secrets)
        names = sorted(self._endpoints)
        await asyncio.sleep(number * 0.005)
        while not self._stopping:
            endpoint = chance.choice(names)
            tokens = chance.randint(*self._load.tokens)
            leaves_after = tokens // 2 if chance.random() < self._load.leaving else 0
            answer = self.live[number] = Answer(endpoint=endpoint)
            body = {"prompt": chance.choice(self._load.prompts), "max_tokens": tokens}
            key = self._keys[self._endpoints[endpoint][0]]
            pause_s = 0.0
            try:
                await self._ask(key, answer, body, leaves_after)
            except Refused as refused:
                if refused.status in _BUSY:
                    # Told to come again: not a failure, as long as it is not in the middle of an answer.
                    self.busy[refused.code] += 1
                    pause_s = min(_LONGEST_PAUSE_S, refused.retry_after_s)
                else:
                    answer.failed = refused.code
            except httpx.HTTPError as error:
                answer.failed = type(error).__name__
            if answer.failed and self.excused:
                answer.failed, pause_s = f"excused: {answer.failed}", 0.2
            answer.at_us = time.time_ns() // 1000
            if answer.tokens or answer.failed:
                self.answers.append(answer)
            await asyncio.sleep(pause_s)
        self.live.pop(number, None)

# SPDX-License-Identifier: Apache-2.0
"""Clients that hold streams open over HTTP and do next to nothing with what comes.

They share the machine with the service that is measured, so they speak HTTP by hand: no event is parsed but
the one that tells how many tokens there were.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_DONE = b"data: [DONE]"


class StreamFailed(RuntimeError):
    """An answer was refused or broke off; what came instead is the message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Door:
    """Where to ask, and as whom.

    Attributes:
        port: of the gateway on this machine.
        key: API key.
        model: name of the deployment.
    """

    port: int
    key: str
    model: str


def stream_all(door: Door, prompts: Sequence[str], new_tokens: int) -> float:
    """Opens a stream for every prompt at once and reads all of them to their end.

    Args:
        door: where.
        prompts: texts.
        new_tokens: of each answer.

    Returns:
        Seconds from the first request to the last answer's end.

    Raises:
        StreamFailed: an answer was refused, broke off or had another number of tokens.
    """
    return asyncio.run(_all(door, prompts, new_tokens))


async def _all(door: Door, prompts: Sequence[str], new_tokens: int) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(_one(door, prompt, new_tokens) for prompt in prompts))
    return time.perf_counter() - began


async def _one(door: Door, prompt: str, new_tokens: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    try:
        writer.write(_request(door, prompt, new_tokens))
        await writer.drain()
        tail = b""
        while piece := await reader.read(1 << 16):
            # What tells of the end is in the last few hundred bytes; the rest is only taken in.
            tail = (tail + piece)[-4096:]
            if _DONE in tail:
                break
    finally:
        writer.close()
    if _DONE not in tail:
        raise StreamFailed(tail.decode(errors="replace"))
    if (told := tokens_told(tail)) != new_tokens:
        raise StreamFailed(f"{told} tokens came instead of {new_tokens}.")


def _request(door: Door, prompt: str, new_tokens: int) -> bytes:
    body: dict[str, Any] = {
        "model": door.model,
        "prompt": prompt,
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{door.port}\r\n"
        f"Authorization: Bearer {door.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + text


def tokens_told(tail: bytes) -> int | None:
    """How many completion tokens the last event that says so tells of."""
    found = None
    for line in tail.split(b"\n"):
        if line.startswith(b"data: {") and b'"completion_tokens"' in line:
            try:
                usage = json.loads(line[6:]).get("usage") or {}
            except ValueError:
                continue
            found = usage.get("completion_tokens", found)
    return found

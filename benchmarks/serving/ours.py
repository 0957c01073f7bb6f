# SPDX-License-Identifier: Apache-2.0
"""Our engine in this process, driven step by step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.serving.arithmetic import Arithmetic, Room
from benchmarks.serving.trace import Trace
from model_core.engine.engine import Engine
from model_core.engine.requests import Sampling, SequenceRequest
from model_core.network.bank import ExpertBank

CONSUMER = "bench"


# The engine's own bound on prompt positions of a step while others decode.
_PREFILL_BESIDE = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One sequence of a turn.

    Attributes:
        prompt: its token ids.
        experts: digests that may compute it.
    """

    prompt: Sequence[int]
    experts: Sequence[str]


def surplus_tokens(concurrency: int, prompt_tokens: int, prefill_tokens: int) -> int:
    """Tokens that the first sequence may get while the last one's prompt is still read."""
    if concurrency == 1:
        return 1
    return concurrency * -(-prompt_tokens // min(prefill_tokens, _PREFILL_BESIDE))


class Ours:
    """An engine over a bank.

    Args:
        bank: weights.
        arithmetic: what computes.
        room: how large the engine is.
        top_k: experts per token.
    """

    def __init__(self, bank: ExpertBank, *, arithmetic: Arithmetic, room: Room, top_k: int) -> None:
        self._bank, self._top_k = bank, top_k
        self._prefill_tokens = room.prefill_tokens
        self._engine: Engine = arithmetic.make(bank, room)

    def close(self) -> None:
        """Lets the engine's memory and threads go."""
        close = getattr(self._engine.runner, "close", None)
        if close is not None:
            close()

    def turn(self, asks: Sequence[Ask], new_tokens: int) -> Trace:
        """Submits all sequences at once and steps until each has its tokens.

        Sequences go on while others still wait for their first token, so that the batch stays whole.

        Args:
            asks: sequences.
            new_tokens: of each, while all of them decode.
        """
        engine = self._engine
        surplus = surplus_tokens(len(asks), max(len(ask.prompt) for ask in asks), self._prefill_tokens)
        sampling = Sampling(max_tokens=new_tokens + surplus, temperature=0.0)
        moments: dict[str, list[float]] = {}
        tokens: dict[str, list[int]] = {}
        began = time.perf_counter()
        for index, ask in enumerate(asks):
            name = f"r{index}"
            moments[name], tokens[name] = [], []
            key = self._bank.state_key(ask.experts, top_k=self._top_k, consumer=CONSUMER)
            engine.submit(
                SequenceRequest(
                    request_id=name,
                    prompt_ids=tuple(ask.prompt),
                    experts=tuple(ask.experts),
                    top_k=self._top_k,
                    state_key=key,
                    sampling=sampling,
                )
            )
        left = None
        while left is None or left > 0:
            events = engine.step()
            engine.commit()
            now = time.perf_counter()
            for event in events:
                moments[event.request_id].append(now)
                tokens[event.request_id].append(event.token_id)
            if left is not None:
                left -= 1
            elif all(moments.values()):
                left = new_tokens - 1
        for name in engine.request_ids:
            engine.cancel(name)
        return Trace(
            began_s=began,
            moments_s=tuple(tuple(found) for found in moments.values()),
            tokens=tuple(tuple(found) for found in tokens.values()),
        )

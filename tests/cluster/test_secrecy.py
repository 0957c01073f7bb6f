# SPDX-License-Identifier: Apache-2.0
"""Law 18 where nobody looks: in what objects say of themselves, and in what a process leaves when it dies."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster.gateway.generation import EventStream
from cluster.hosting.choice import Choice, Label, StepToken
from model_core.engine.requests import Sampling, SequenceRequest, TokenEvent
from model_core.engine.runner import Likeliest, Piece
from model_core.engine.sequences import RunningSequence
from model_core.engine.tables import scope_of
from model_core.network.bank import StateKey

SECRET = 76543


def _objects() -> list[Any]:
    key = StateKey(base="b", experts=(), router="r", top_k=1, dtype="f", consumer="t")
    request = SequenceRequest(request_id="r", prompt_ids=(SECRET,), experts=(), top_k=1, state_key=key)
    event = TokenEvent(
        request_id="r",
        token_id=SECRET,
        logprob=0.0,
        top_logprobs=((SECRET, 0.0),),
        attribution_ppm={},
        finished=None,
    )
    choice = Choice(
        name="r/0",
        index=0,
        deployment="d",
        consumer="t",
        prompt_ids=(SECRET,),
        sampling=Sampling(),
        notify=lambda *_: None,
        released_ids=[SECRET],
    )
    scope = scope_of(key, shared=False)
    return [
        choice,
        request,
        event,
        StepToken(generation=0, label=Label(epoch=1, composition_digest="c"), event=event),
        Piece(ids=(SECRET,), start=0, pages=(0,), tail=0, columns=(0,), top_k=1),
        RunningSequence(request=request, experts=(), top_k=1, scope=scope, tokens=[SECRET]),
        Likeliest(tokens_B=[SECRET], log_totals_B=[0.0], ppm_BE=[1_000_000]),
    ]


@pytest.mark.parametrize("shown", _objects(), ids=lambda one: type(one).__name__)
def test_objects_that_hold_tokens_do_not_show_them(shown: Any) -> None:
    """Whatever quotes an object in a message quotes no prompt and no answer."""
    assert str(SECRET) not in repr(shown)


def test_a_process_that_dies_by_a_fault_writes_no_core() -> None:
    """The limit is the one that holds also where cores go to a program, and nobody can raise it again."""
    code = (
        "import resource as r; from cluster.secrecy import leave_no_core as f; f(); f(); "
        "print(r.getrlimit(r.RLIMIT_CORE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in {"(1, 1)", "(0, 0)"}


def test_a_client_that_reads_nothing_keeps_no_place() -> None:
    """Sending is bounded in time, and the generation behind it is ended."""
    ended: list[bool] = []

    async def events() -> AsyncIterator[bytes]:
        while True:
            yield b"data: x\n\n"

    async def ending() -> None:
        ended.append(True)

    async def never(*_: Any) -> Any:
        await asyncio.Event().wait()

    async def story() -> None:
        stream = EventStream(events(), ending, {}, within_s=0.05)
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
        await asyncio.wait_for(stream(scope, never, never), 10)

    asyncio.run(story())
    assert ended == [True]

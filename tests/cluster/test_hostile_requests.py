# SPDX-License-Identifier: Apache-2.0
"""Well-formed requests that mean harm: a host answers or refuses them, and goes on for everybody else."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from cluster.hosting import questions
from cluster.hosting.errors import PromptRefused
from cluster.hosting.gate import ReleaseGate
from cluster.hosting.lease import boottime_us
from cluster.hosting.messages import ChatTurn
from tests.cluster.host_worlds import (
    Office,
    World,
    admission,
    collect,
    running,
    tokens_of,
    until,
)


def test_numbers_beyond_all_bounds_end_no_host(world: World, tmp_path: Path) -> None:
    """Settings as large as JSON allows are drawn with or refused; the engine's thread lives on."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        async with running(world, office, tmp_path) as server:
            wild: list[dict[str, Any]] = [
                {"top_k": 10**39},
                {"seed": 2**63 - 1, "n": 2},
                {"temperature": 5e-324, "top_p": 5e-324},
                {"logit_bias": ((0, 100.0), (0, -100.0)), "frequency_penalty": -2.0},
            ]
            for fields in wild:
                chunks = await collect(
                    server, admission(world), **({"temperature": 1.0, "ignore_eos": True} | fields)
                )
                assert len(tokens_of(chunks)) == 40 * fields.get("n", 1)
            server.check()

    asyncio.run(story())


def test_text_that_cannot_fit_is_refused_unread(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megabytes of text never reach the tokenizer: they would hold up everybody's lease."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        async with running(world, office, tmp_path) as server:
            monkeypatch.setattr(server.tokenizer, "encode", lambda _: pytest.fail("the text was read"))
            long = "dog " * 100_000
            for fields in (
                {"prompt": long},
                {"prompt": None, "turns": (ChatTurn(role="user", content=long),)},
            ):
                with pytest.raises(PromptRefused):
                    await collect(server, admission(world), **fields)

    asyncio.run(story())


def test_numbers_computed_while_a_host_is_stopped_are_computed_anew(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits and scores are given away like tokens: under a lease, and under what is permitted then."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        stopped_us, epochs = 0, itertools.count(2)
        gate = ReleaseGate(boot_clock=lambda: boottime_us() + stopped_us)
        async with running(world, office, tmp_path, gate) as server:
            await until(lambda: set(server.room.bank.digests) == set(world.experts.values()))
            seen: list[frozenset[str]] = []

            def stopping(plain: Any) -> Any:
                def compute(*arguments: Any) -> Any:
                    nonlocal stopped_us
                    found = plain(*arguments)
                    seen.append(frozenset(server.room.roster.experts))
                    if len(seen) == 1:
                        stopped_us += 3_000_000
                        later = office.publish(world.snapshot(next(epochs), without=("anna",)))
                        asyncio.run_coroutine_threadsafe(later, server._loop)
                    return found

                return compute

            for name in ("probe", "score_texts"):
                monkeypatch.setattr(questions, name, stopping(getattr(questions, name)))
            await server.probe("lab", "the dog")
            assert world.experts["anna"] in seen[0]
            assert world.experts["anna"] not in seen[-1]
            await office.publish(world.snapshot(next(epochs)))
            await until(lambda: set(server.room.bank.digests) == set(world.experts.values()))
            seen.clear()
            answer = await server.score("lab", ("the dog",) * 20)
            assert world.experts["anna"] in seen[0]
            assert set(answer.experts) == {"bens-expert", "cleos-expert"}
            assert len(answer.documents) == 20

    asyncio.run(story())

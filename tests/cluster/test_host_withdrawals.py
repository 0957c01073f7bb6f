# SPDX-License-Identifier: Apache-2.0
"""A model host hears that an expert or a deployment may not serve any more, or knows when by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.hosting.errors import DeploymentNotHosted
from cluster.hosting.journals import journal_records
from cluster.hosting.messages import GenerationChunk, GenerationRequest
from cluster.hosting.probe import probe
from model_core.network.bank import ExpertBank
from tests.cluster.host_worlds import (
    Office,
    World,
    admission,
    collect,
    running,
    slow_down,
    timed,
    tokens_of,
    until,
)


def test_withdrawal_while_sixteen_streams_run(world: World, tmp_path: Path) -> None:
    """Every stream goes on without the expert, from a known token on, and poison shows nowhere."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        async with running(world, office, tmp_path, keep_poisoned=True) as server:
            got: dict[int, int] = dict.fromkeys(range(16), 0)

            def seen(number: int) -> Callable[[GenerationChunk], None]:
                return lambda chunk: got.__setitem__(number, got[number] + len(chunk.token_ids))

            streams = [
                asyncio.create_task(
                    collect(server, admission(world), seen(n), max_tokens=150, temperature=1.0, seed=n)
                )
                for n in range(16)
            ]
            await until(lambda: min(got.values()) >= 8)
            assert not any(stream.done() for stream in streams)
            await office.publish(world.snapshot(2, without=("anna",)))
            await until(lambda: office.acknowledged[-1][0] == 2)
            at_acknowledgement = dict(got)
            results = await asyncio.gather(*streams)
            assert server.health().poisoned == world.digests("anna")
            old, new = (compositions["lab"] for _, _, compositions in office.acknowledged)
            for number, chunks in enumerate(results):
                account = chunks[-1].marketplace
                assert account is not None
                assert chunks[-1].finish_reason in ("length", "stop")
                before, after = account.segments
                assert (before.epoch, before.composition_digest) == (1, old)
                assert (after.epoch, after.composition_digest) == (2, new)
                assert before.experts["annas-expert"] > 0
                assert "annas-expert" not in after.experts
                assert set(after.experts) > {"public"}
                assert after.from_token == before.to_token <= at_acknowledgement[number]
                if chunks[-1].finish_reason == "length":
                    assert account.completion_tokens == 150
                    assert after.to_token - after.from_token >= 8
            assert server.room.counts.recomposed == 16

            # Exactness: bit for bit what a process computes that never held the withdrawn expert.
            shown = await server.probe("lab", "the lazy dog")
            assert shown.finite
            assert shown.poisoned == world.digests("anna")
            fresh = ExpertBank.open(world.base, world.store.get_bundle(world.base))
            for digest in world.digests("ben", "cleo"):
                fresh.add_folder(digest, world.store.get_bundle(digest))
            ids = [world.tokenizer.end_of_text_id, *world.tokenizer.encode("the lazy dog")]
            alone = probe(fresh, ids, world.digests("ben", "cleo"), shown.top_k)
            assert alone.logits == shown.logits
        for one in journal_records(tmp_path):
            assert (one.epoch == 1) or world.experts["anna"] not in one.experts

    asyncio.run(story())


def test_streams_that_lost_nothing_are_left_alone(world: World, tmp_path: Path) -> None:
    """An epoch that changes nothing for a deployment recomputes nothing of it."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        async with running(world, office, tmp_path) as server:
            alone = tokens_of(await collect(server, admission(world), max_tokens=60))
            slow_down(server)
            stream = asyncio.create_task(collect(server, admission(world), max_tokens=60))
            await until(lambda: server.health().running == 1)
            await office.publish(world.snapshot(2, deployments=("lab", "other")))
            await office.publish(world.snapshot(3))
            chunks = await stream
            assert tokens_of(chunks) == alone
            assert server.room.counts.recomposed == 0
            account = chunks[-1].marketplace
            assert account is not None
            assert len(account.segments) == 1

    asyncio.run(story())


def test_tokens_that_wait_while_their_expert_is_withdrawn_are_never_released(
    world: World, tmp_path: Path
) -> None:
    """A slow client: what was computed with the expert but not yet released is computed anew without it."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        async with running(world, office, tmp_path) as server:
            request = GenerationRequest(prompt="the dog", max_tokens=60, temperature=0.0)
            stream = server.generate(admission(world), request)
            first = await anext(stream)
            await until(lambda: server.room.engine.idle)  # all computed, little released
            await office.publish(world.snapshot(2, without=("anna",)))
            await until(lambda: office.acknowledged[-1][0] == 2)
            rest = [chunk async for chunk in stream]
            account = rest[-1].marketplace
            assert account is not None
            assert account.completion_tokens == len(tokens_of([first, *rest])) == 60
            before, after = account.segments
            assert before.to_token == len(first.token_ids)
            assert "annas-expert" not in after.experts
            assert server.room.counts.restarted == 1

    asyncio.run(story())


def test_time_bound_expires_without_a_message(world: World, tmp_path: Path) -> None:
    """At ``valid_until`` the expert leaves by itself, though the epoch stays the same."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        async with running(world, office, tmp_path) as server:
            await until(lambda: bool(office.acknowledged))
            ends_us = time.time_ns() // 1000 + 3_000_000
            await office.publish(world.snapshot(2, ends_us={"anna": ends_us}))
            await until(lambda: len(office.acknowledged) == 2)
            assert world.experts["anna"] in server.room.bank.digests
            late: list[GenerationChunk] = []
            while not late:
                began_us = time.time_ns() // 1000
                chunks = await collect(server, admission(world), max_tokens=4)
                if began_us >= ends_us:
                    late += chunks
            names = {
                name for c in late if c.marketplace for s in c.marketplace.segments for name in s.experts
            }
            assert names
            assert "annas-expert" not in names
            await until(lambda: len(office.acknowledged) == 3)
            assert [epoch for epoch, *_ in office.acknowledged] == [1, 2, 2]
            assert office.acknowledged[1][2] != office.acknowledged[2][2]
            assert world.experts["anna"] not in server.room.bank.digests

    asyncio.run(story())


def test_removed_deployment_ends_its_streams_and_takes_no_new_ones(world: World, tmp_path: Path) -> None:
    """Streams end as withdrawn with their account; new requests are refused."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1, deployments=("lab", "other")))
        async with running(world, office, tmp_path) as server:
            times: list[int] = []
            slow_down(server)
            stream = asyncio.create_task(timed(server, admission(world), times, max_tokens=200))
            await until(lambda: len(times) >= 2)
            await office.publish(world.snapshot(2, deployments=("other",)))
            chunks = await stream
            assert chunks[-1].finish_reason == "withdrawn"
            assert chunks[-1].marketplace is not None
            with pytest.raises(DeploymentNotHosted):
                await collect(server, admission(world, epoch=2))

    asyncio.run(story())

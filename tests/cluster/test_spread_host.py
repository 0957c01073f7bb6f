# SPDX-License-Identifier: Apache-2.0
"""A model host over two processes: the same answers, and an end that is noticed."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from cluster.errors import ProductError
from cluster.hosting.errors import HostStopping
from model_core.errors import RanksRefused
from tests.cluster.host_worlds import (
    Office,
    World,
    admission,
    bundle_maker,
    collect,
    running,
    tokens_of,
    until,
)


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base of two key-value heads; nothing writes to it."""
    return World(bundle_maker(request), tmp_path_factory.mktemp("world"), n_kv_heads=2)


def test_a_spread_host_answers_withdraws_and_is_replaced_when_a_process_dies(
    world: World, tmp_path: Path
) -> None:
    """Tokens of one process; an epoch is acknowledged over both; a killed one ends streams and health."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        async with running(world, office, tmp_path / "one") as server:
            await until(lambda: len(server.room.bank.digests) == 3)
            alone = tokens_of(await collect(server, admission(world), max_tokens=12))
        office = Office()
        await office.publish(world.snapshot(1))
        weights = tmp_path / "weights"
        async with running(world, office, tmp_path / "two", shards=2, weights=weights) as server:
            await until(lambda: len(server.room.bank.digests) == 3)
            assert tokens_of(await collect(server, admission(world), max_tokens=12)) == alone
            assert len(list(weights.glob("part*.weights"))) == 2 * 4
            await office.publish(world.snapshot(2, without=("anna",)))
            await until(lambda: bool(office.acknowledged) and office.acknowledged[-1][0] == 2)
            left = tokens_of(await collect(server, admission(world), max_tokens=12))
            server.check()
            gang = server._opened.gang
            assert gang is not None
            os.kill(gang.pids[0], signal.SIGKILL)
            with pytest.raises(ProductError):
                await collect(server, admission(world), max_tokens=12)
            with pytest.raises(HostStopping):
                server.check()
            await until(lambda: server.room.failure is not None)
        async with running(world, office, tmp_path / "three") as server:
            await until(lambda: len(server.room.bank.digests) == 2)
            assert tokens_of(await collect(server, admission(world), max_tokens=12)) == left

    asyncio.run(story())


def test_a_host_that_cannot_be_spread_says_so(world: World, tmp_path: Path) -> None:
    """More processes than key-value heads: the host does not start, with the number that would do."""

    async def story() -> None:
        with pytest.raises(RanksRefused, match="2 key-value heads"):
            async with running(world, Office(), tmp_path, shards=3):
                pass

    asyncio.run(story())

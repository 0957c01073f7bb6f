# SPDX-License-Identifier: Apache-2.0
"""A model host without a valid lease, paused, or told an older epoch releases nothing that it may not."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.hosting.errors import LeaseLost
from cluster.hosting.gate import ReleaseGate
from cluster.hosting.lease import boottime_us
from cluster.hosting.messages import GenerationChunk
from cluster.hosting.server import ModelServer
from cluster.office.protocol import Admission
from model_core.engine.requests import TokenEvent
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


def test_without_lease_nothing_is_released_and_streams_go_on_with_the_same_tokens(
    world: World, tmp_path: Path
) -> None:
    """The office falls silent: no chunk leaves after two seconds; once it is back, the answer continues."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        async with running(world, office, tmp_path, hold_s=20.0, max_sequences=2) as server:
            alone = tokens_of(await collect(server, admission(world), max_tokens=100))
            times: list[int] = []
            slow_down(server)
            pace = asyncio.create_task(timed(server, admission(world), times, max_tokens=100))
            await until(lambda: len(times) >= 5)
            office.unplugged = True
            cut_us = boottime_us()
            await asyncio.sleep(2.6)
            assert not pace.done()
            assert not server.gate.is_open()
            assert max(times) < cut_us + 2_100_000
            steps = server.room.counts.steps
            office.unplugged = False
            chunks = await pace
            assert tokens_of(chunks) == alone
            assert server.room.counts.steps >= steps

    asyncio.run(story())


def quick_gate() -> ReleaseGate:
    """A gate whose clock runs four times as fast: leases end after half a second."""
    return ReleaseGate(boot_clock=lambda: 4 * boottime_us())


def test_a_step_during_which_the_host_was_paused_is_discarded(world: World, tmp_path: Path) -> None:
    """Three seconds pass in the middle of a step: its tokens are computed again under the next lease."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        paused_us = 0
        gate = ReleaseGate(boot_clock=lambda: boottime_us() + paused_us)
        async with running(world, office, tmp_path, gate) as server:
            alone = tokens_of(await collect(server, admission(world), max_tokens=30))
            step, left = server.room.engine.step, iter(range(1000))

            def pausing() -> list[TokenEvent]:
                nonlocal paused_us
                events = step()
                if next(left) == 9:
                    paused_us += 3_000_000
                    assert not gate.is_open()
                return events

            server.room.engine.step = pausing  # type: ignore[method-assign]
            assert tokens_of(await collect(server, admission(world), max_tokens=30)) == alone
            assert server.room.counts.discarded == 1

    asyncio.run(story())


def test_lease_that_stays_lost_fails_with_a_clear_error(world: World, tmp_path: Path) -> None:
    """After the holding time the stream ends with ``lease_lost`` and its usage stays journaled."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        async with running(world, office, tmp_path, quick_gate(), hold_s=0.3, reach_s=0.3) as server:
            await until(lambda: bool(office.acknowledged) and server.gate.is_open())
            office.unplugged = True
            await until(lambda: not server.gate.is_open())
            with pytest.raises(LeaseLost):
                await collect(server, admission(world))
            with pytest.raises(LeaseLost):
                await collect(server, admission(world, epoch=9))
            office.unplugged = False
            assert (await answered(server, admission(world)))[-1].finish_reason is not None

    asyncio.run(story())


async def answered(server: ModelServer, given: Admission) -> list[GenerationChunk]:
    """Asks until the lease holds for a whole answer: on a busy machine so short a one lapses again."""
    while True:
        await until(server.gate.is_open)
        with suppress(LeaseLost):
            return await collect(server, given)


def test_a_deployment_may_refuse_instead_of_waiting(world: World, tmp_path: Path) -> None:
    """Cut off, its open answers end at once, while those of another deployment wait and then go on."""

    async def story() -> None:
        office = Office()
        plain = world.snapshot(1, deployments=("lab", "other"))
        lab, other = plain.deployments
        refuses = lab.model_copy(update={"when_cut_off": "refuse"})
        await office.publish(plain.model_copy(update={"deployments": (refuses, other)}))
        async with running(world, office, tmp_path, hold_s=60.0, reach_s=60.0) as server:
            slow_down(server)
            times: list[int] = []
            waits = asyncio.create_task(
                timed(server, admission(world, deployment="other"), [], max_tokens=150)
            )
            ends = asyncio.create_task(timed(server, admission(world), times, max_tokens=150))
            await until(lambda: len(times) >= 3)
            office.unplugged = True
            with pytest.raises(LeaseLost):
                await ends
            assert not waits.done()
            office.unplugged = False
            assert len(tokens_of(await waits)) > len(times)

    asyncio.run(story())


def test_lower_epoch_and_false_snapshot_are_refused(world: World, tmp_path: Path) -> None:
    """A register that goes back is not followed, and its answers do not renew the lease."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(5, without=("anna",)))
        async with running(world, office, tmp_path, quick_gate()) as server:
            await until(server.gate.is_open)
            await office.publish(world.snapshot(4))
            await until(lambda: server.link.counts.refused > 0)
            assert server.link.roster.epoch == 5
            await until(lambda: not server.gate.is_open())
            await office.publish(world.snapshot(6))
            await until(server.gate.is_open)
            assert set(server.link.roster.served["lab"].experts) == set(world.experts.values())

    asyncio.run(story())


def test_a_host_that_starts_anew_refuses_a_register_restored_to_an_older_epoch(
    world: World, tmp_path: Path
) -> None:
    """What any host of the machine has followed is remembered; a later epoch is followed again."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(5, without=("anna",)))
        async with running(world, office, tmp_path) as server:
            await until(server.gate.is_open)
        await office.publish(world.snapshot(4))
        async with running(world, office, tmp_path) as server:
            await until(lambda: server.link.counts.refused > 0)
            assert server.link.roster.epoch == -1
            assert not server.gate.is_open()
            await office.publish(world.snapshot(6))
            await until(server.gate.is_open)

    asyncio.run(story())

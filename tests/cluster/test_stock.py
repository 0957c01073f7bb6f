# SPDX-License-Identifier: Apache-2.0
"""Which experts a host has in memory, and what becomes of requests whose experts are not there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cluster.hosting.errors import ExpertsDoNotFit, ExpertsNotLoaded
from cluster.hosting.messages import GenerationRequest
from cluster.hosting.server import ModelServer
from model_core.packing.bundle import check_bundle
from policy.facts.snapshot import Snapshot
from tests.cluster.host_worlds import (
    OWNERS,
    Office,
    World,
    admission,
    collect,
    running,
    tokens_of,
    until,
)

APART = {owner: (owner,) for owner in OWNERS}


def room_for(world: World, count: int) -> int:
    """A budget that so many experts fit into; all are of one size."""
    one = world.store.get_bundle(world.experts["anna"]) / "expert.safetensors"
    return count * one.stat().st_size


async def acknowledged(server: ModelServer, epoch: int) -> None:
    """Waits until a host has loaded what it can of an epoch."""
    await until(lambda: server.link.counts.acknowledged_epoch >= epoch)


def test_an_evicted_expert_comes_back_for_the_request_that_needs_it(world: World, tmp_path: Path) -> None:
    """With room for two of three, every deployment answers as in a host that has room for all."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1, candidates=APART))
        async with running(world, office, tmp_path / "wide") as server:
            wide = [tokens_of(await collect(server, admission(world, deployment=one))) for one in OWNERS]
        async with running(world, office, tmp_path / "narrow", experts_bytes=room_for(world, 2)) as server:
            await acknowledged(server, 1)
            assert len(server.health().resident) == 2
            for _ in range(2):
                for owner, answer in zip(OWNERS, wide, strict=True):
                    chunks = await collect(server, admission(world, deployment=owner))
                    assert tokens_of(chunks) == answer
                    account = chunks[-1].marketplace
                    assert account is not None
                    assert f"{owner}s-expert" in account.segments[0].experts
                    health = server.health()
                    assert world.experts[owner] in health.resident
                    assert health.resident_bytes <= room_for(world, 2)
            assert health.evicted >= 3
            assert health.waited >= 3
            assert health.loaded == 2 + health.waited

    asyncio.run(story())


def test_who_was_asked_for_longest_ago_makes_room(world: World, tmp_path: Path) -> None:
    """Of two experts in memory, the one whose request came first leaves."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1, candidates=APART))
        async with running(world, office, tmp_path, experts_bytes=room_for(world, 2)) as server:
            for owner in ("anna", "ben", "anna", "cleo"):
                await collect(server, admission(world, deployment=owner), max_tokens=2)
            assert server.health().resident == world.digests("anna", "cleo")

    asyncio.run(story())


def test_a_pinned_expert_never_makes_room(world: World, tmp_path: Path) -> None:
    """Pinned by name: the others change places beside it."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1, candidates=APART))
        choices = {"experts_bytes": room_for(world, 2), "pins": ("anna/annas-expert",)}
        async with running(world, office, tmp_path, **choices) as server:
            for owner in ("anna", "ben", "cleo", "ben", "cleo"):
                await collect(server, admission(world, deployment=owner), max_tokens=2)
                assert world.experts[owner] in server.health().resident
            assert server.health().resident == world.digests("anna", "cleo")
            assert server.health().pinned == world.digests("anna")

    asyncio.run(story())


def test_an_expert_in_use_stays_and_the_others_wait_for_it(world: World, tmp_path: Path) -> None:
    """With room for one, a second deployment begins when the first one's answer has ended."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1, candidates=APART))
        async with running(world, office, tmp_path, experts_bytes=room_for(world, 1)) as server:
            begun: list[str] = []
            first = asyncio.create_task(
                collect(server, admission(world, deployment="anna"), lambda _: begun.append("anna"))
            )
            await until(lambda: bool(begun))
            second = asyncio.create_task(
                collect(server, admission(world, deployment="ben"), lambda _: begun.append("ben"))
            )
            await asyncio.gather(first, second)
            assert begun == sorted(begun)
            assert server.health().resident == world.digests("ben")

    asyncio.run(story())


def test_what_does_not_fit_is_refused_with_a_code(world: World, tmp_path: Path) -> None:
    """Too large a set at once; one whose room is taken after the time that a request may wait."""

    async def story() -> None:
        office = Office()
        sets = {"all": OWNERS, "anna": ("anna",), "ben": ("ben",)}
        await office.publish(world.snapshot(1, candidates=sets))
        choices = {"experts_bytes": room_for(world, 1), "reach_s": 0.5, "max_sequences": 1}
        async with running(world, office, tmp_path, **choices) as server:
            await acknowledged(server, 1)
            with pytest.raises(ExpertsDoNotFit) as never:
                await collect(server, admission(world, deployment="all"))
            assert never.value.facts["retry_after_s"] >= 1
            with pytest.raises(ExpertsDoNotFit):
                await server.score("all", ("the dog",))
            stream = server.generate(admission(world, deployment="anna"), _endless())
            await anext(stream)
            server.room.engine.step = list  # type: ignore[method-assign, assignment]  # it computes nothing more
            with pytest.raises(ExpertsNotLoaded) as later:
                await collect(server, admission(world, deployment="ben"))
            assert later.value.facts["retry_after_s"] >= 1
            await stream.aclose()

    asyncio.run(story())


def _endless() -> GenerationRequest:
    return GenerationRequest(prompt="the dog", max_tokens=200, temperature=0.0)


def test_what_is_new_takes_the_place_of_what_nobody_asks_for(world: World, tmp_path: Path) -> None:
    """An expert that comes with an epoch is loaded with it; one that made room is not loaded by the next."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1, candidates=APART, without=("cleo",)))
        async with running(world, office, tmp_path, experts_bytes=room_for(world, 2)) as server:
            await acknowledged(server, 1)
            await collect(server, admission(world, deployment="anna"), max_tokens=2)
            await office.publish(world.snapshot(2, candidates=APART))
            await acknowledged(server, 2)
            assert server.health().resident == world.digests("anna", "cleo")
            await office.publish(world.snapshot(3, candidates=APART))
            await acknowledged(server, 3)
            assert server.health().resident == world.digests("anna", "cleo")
            await office.publish(world.snapshot(4, candidates=APART, without=("anna",)))
            await acknowledged(server, 4)
            assert server.health().resident == world.digests("cleo")

    asyncio.run(story())


def test_many_sets_at_once_in_little_room(world: World, tmp_path: Path) -> None:
    """Thirty requests over six sets with room for two experts: all answer, as each does alone."""

    async def story() -> None:
        office = Office()
        pairs = {f"{one}-{other}": (one, other) for one in OWNERS for other in OWNERS if one < other}
        sets = APART | pairs
        await office.publish(world.snapshot(1, candidates=sets))
        async with running(world, office, tmp_path / "wide") as server:
            alone = {
                name: tokens_of(await collect(server, admission(world, deployment=name), max_tokens=6))
                for name in sets
            }
        choices = {"experts_bytes": room_for(world, 2), "reach_s": 30.0}
        async with running(world, office, tmp_path / "narrow", **choices) as server:
            names = [name for name in sets for _ in range(5)]
            asked = [collect(server, admission(world, deployment=name), max_tokens=6) for name in names]
            for name, chunks in zip(names, await asyncio.gather(*asked), strict=True):
                assert tokens_of(chunks) == alone[name]
            assert server.health().resident_bytes <= room_for(world, 2)

    asyncio.run(story())


def test_packed_files_go_with_the_last_host_that_may_use_them(world: World, tmp_path: Path) -> None:
    """A withdrawn expert's file goes; one that is only not used at present stays, for a roll back."""
    folder = tmp_path / "weights"
    folder.mkdir(mode=0o700)
    files = {
        owner: folder / f"expert-{digest.removeprefix('sha256:')}-v1-fp32.weights"
        for owner, digest in world.experts.items()
    }
    for path in files.values():
        path.touch()

    def left() -> set[str]:
        return {owner for owner, path in files.items() if path.exists()}

    async def story() -> None:
        office, late = Office(), Office()
        for each in (office, late):
            await each.publish(world.snapshot(1, candidates={"anna": ("anna",), "both": ("anna", "ben")}))
        async with (
            running(world, office, tmp_path / "one", weights=folder) as one,
            running(world, late, tmp_path / "other", weights=folder) as other,
        ):
            await acknowledged(one, 1)
            await acknowledged(other, 1)
            assert left() == set(OWNERS)
            second = world.snapshot(2, candidates={"both": ("anna", "ben")}, without=("anna",))
            await office.publish(second)
            await acknowledged(one, 2)
            assert left() == set(OWNERS)
            await late.publish(second)
            await acknowledged(other, 2)
            assert left() == {"ben", "cleo"}

    asyncio.run(story())


def test_a_former_version_outstays_strangers_and_is_current_again_when_asked(
    world: World, tmp_path: Path
) -> None:
    """An upgrade while the old version is still permitted somewhere, and the way back."""
    newer, after = with_newer_version(world, tmp_path)

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1, candidates=APART))
        async with running(world, office, tmp_path / "host", experts_bytes=room_for(world, 3)) as server:
            await acknowledged(server, 1)
            for owner in ("cleo", "anna", "ben"):
                await collect(server, admission(world, deployment=owner), max_tokens=2)
            await office.publish(after)
            await acknowledged(server, 2)
            assert server.health().former == world.digests("anna")
            assert set(server.health().resident) == {newer, *world.digests("anna", "ben")}
            await collect(server, admission(world, deployment="cleo"), max_tokens=2)
            assert set(server.health().resident) == {newer, *world.digests("anna", "cleo")}
            await collect(server, admission(world, deployment="anna"), max_tokens=2)
            assert server.health().former == ()

    asyncio.run(story())


def with_newer_version(world: World, folder: Path) -> tuple[str, Snapshot]:
    """A second version of anna's expert, and the second epoch, which serves it beside everything else."""
    base = check_bundle(world.store.get_bundle(world.base), expect_digest=world.base)
    made = world.bundles.expert(
        folder / "newer",
        base,
        seed=9,
        tenant="anna",
        name="annas-expert",
        created_at_us=1_800_000_000_000_000,
    )
    newer = world.store.put_bundle(folder / "newer", made.digest)
    plain = world.snapshot(2, candidates=APART)

    def again(facts: Any, place: str, **changes: Any) -> tuple[Any, ...]:
        old = next(fact for fact in facts if fact.expert_id == "exp_anna")
        return (*facts, old.model_copy(update={place: f"{getattr(old, place)}_2", **changes}))

    lab = plain.deployments[0].model_copy(update={"name": "newer", "candidates": ("exp_anna_2",)})
    changed = {
        "experts": again(plain.experts, "expert_id", bundle_digest=newer),
        "consents": again(plain.consents, "id", expert_id="exp_anna_2"),
        "grants": again(plain.grants, "id", expert_id="exp_anna_2"),
        "deployments": (*plain.deployments, lab),
    }
    fields = {name: getattr(plain, name) for name in type(plain).model_fields}
    return newer, Snapshot(**(fields | changed))

# SPDX-License-Identifier: Apache-2.0
"""A model host with a tiny random base and an office that the test holds in its hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from cluster.hosting.errors import DeploymentNotHosted, HostOverloaded, LeaseLost, PromptRefused
from cluster.hosting.gate import ReleaseGate
from cluster.hosting.journal import journal_records
from cluster.hosting.lease import boottime_us
from cluster.hosting.messages import GenerationChunk, GenerationRequest
from cluster.hosting.probe import probe
from cluster.hosting.server import ModelServer
from cluster.office.protocol import Admission
from model_core.engine.requests import TokenEvent
from model_core.network.bank import ExpertBank, forward_logits
from tests.cluster.host_worlds import (
    OWNERS,
    Office,
    World,
    admission,
    bundle_maker,
    collect,
    running,
    slow_down,
    tokens_of,
    until,
)


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One store for all tests of this file; nothing writes to it."""
    return World(bundle_maker(request), tmp_path_factory.mktemp("world"))


def test_answer_is_journaled_accounted_and_acknowledged(world: World, tmp_path: Path) -> None:
    """One request: text equals the tokens, shares sum up, the office gets every record once, then final."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        async with running(world, office, tmp_path) as server:
            given = admission(world)
            chunks = await collect(server, given, n=2, logprobs=2, temperature=1.0, seed=7)
            account = chunks[-1].marketplace
            assert account is not None
            assert account.request_id == given.request_id
            assert all(chunk.marketplace is None for chunk in chunks[:-1])
            assert chunks[0].prompt_tokens == account.prompt_tokens
            for index in range(2):
                mine = [chunk for chunk in chunks if chunk.index == index]
                ids = tokens_of(mine)
                assert "".join(chunk.text for chunk in mine) == world.tokenizer.decode(ids)
                assert sum(len(chunk.logprobs or ()) for chunk in mine) == len(ids)
                assert mine[-1].finish_reason in ("length", "stop")
                assert sum(s.to_token - s.from_token for s in account.segments if s.index == index) == len(
                    ids
                )
            for part in account.segments:
                assert sum(part.experts.values()) == (part.to_token - part.from_token) * 1_000_000
                assert set(part.experts) <= {"public", *(f"{owner}s-expert" for owner in OWNERS)}
            await until(lambda: server.journal.settled and bool(office.acknowledged))
            epoch, digest, compositions = office.acknowledged[-1]
            assert (epoch, digest) == (1, world.snapshot(1).digest)
            assert compositions["lab"] == account.segments[0].composition_digest
            mine_used = [one for one in office.records if one.request_id == given.request_id]
            assert sum(one.completion_tokens for one in mine_used) == account.completion_tokens
            assert sum(one.prompt_tokens for one in mine_used) == account.prompt_tokens
            assert [one.final for one in mine_used][-1]

    asyncio.run(story())


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


async def timed(
    server: ModelServer, given: Admission, times: list[int], *, max_tokens: int
) -> list[GenerationChunk]:
    """Chunks of a greedy request, each noted with the boot clock at its release."""
    return await collect(server, given, lambda _: times.append(boottime_us()), max_tokens=max_tokens)


def quick_gate() -> ReleaseGate:
    """A gate whose clock runs four times as fast: leases end after half a second."""
    return ReleaseGate(boot_clock=lambda: 4 * boottime_us())


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
            while time.time_ns() // 1000 < ends_us + 300_000:
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


async def answered(server: ModelServer, given: Admission) -> list[GenerationChunk]:
    """Asks until the lease holds for a whole answer: on a busy machine so short a one lapses again."""
    while True:
        await until(server.gate.is_open)
        with suppress(LeaseLost):
            return await collect(server, given)


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


def test_client_that_leaves_frees_its_place_and_is_billed_for_what_left(world: World, tmp_path: Path) -> None:
    """Closing the stream cancels in the engine and writes the final record."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        async with running(world, office, tmp_path, max_sequences=1) as server:
            given = admission(world)
            stream = server.generate(
                given, GenerationRequest(prompt="the dog", max_tokens=200, temperature=0.0)
            )
            received = [await anext(stream) for _ in range(3)]
            await stream.aclose()
            assert (await collect(server, admission(world), max_tokens=2))[-1].finish_reason == "length"
            await until(lambda: server.room.engine.idle)
            mine = [one for one in journal_records(tmp_path) if one.request_id == given.request_id]
            assert sum(one.completion_tokens for one in mine) == len(tokens_of(received))
            assert [one.final for one in mine] == [False] * (len(mine) - 1) + [True]

    asyncio.run(story())


def test_bad_prompts_and_a_full_house_are_refused(world: World, tmp_path: Path) -> None:
    """Each with its error, and the reservation is given back by a final record."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        async with running(world, office, tmp_path, max_sequences=2, max_waiting=3) as server:
            for fields in ({"prompt": "dog " * 400}, {"prompt": None, "prompt_token_ids": (99_999,)}):
                with pytest.raises(PromptRefused):
                    await collect(server, admission(world), **fields)
            with pytest.raises(HostOverloaded):
                await collect(server, admission(world), n=3)
            with pytest.raises(DeploymentNotHosted):
                await collect(server, admission(world, deployment="nowhere"))
            short = await collect(server, admission(world, tokens=3), max_tokens=40)
            assert len(tokens_of(short)) == 3

    asyncio.run(story())


def test_stop_text_ends_a_choice_and_is_not_shown(world: World, tmp_path: Path) -> None:
    """Text up to the stop text, nothing behind it, and only released tokens are counted."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        async with running(world, office, tmp_path) as server:
            whole = "".join(c.text for c in await collect(server, admission(world), max_tokens=60))
            stop = whole[12:15]
            chunks = await collect(server, admission(world), max_tokens=60, stop=(stop,))
            assert "".join(chunk.text for chunk in chunks) == whole[: whole.index(stop)]
            assert chunks[-1].finish_reason == "stop"
            account = chunks[-1].marketplace
            assert account is not None
            assert account.completion_tokens == len(tokens_of(chunks)) < 60

    asyncio.run(story())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answer_that_another_host_began_goes_on_as_if_it_never_stopped(
    world: World, tmp_path: Path, temperature: float
) -> None:
    """Tokens and text after the cut are those of the uninterrupted answer; only they are charged."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        fields = {"temperature": temperature, "seed": 11, "n": 2, "max_tokens": 24, "ignore_eos": True}
        async with running(world, office, tmp_path) as server:
            whole = await collect(server, admission(world), **fields)
            said = [tokens_of([c for c in whole if c.index == index]) for index in range(2)]
            text = "".join(chunk.text for chunk in whole if chunk.index == 1)
            cut = 9
            given = admission(world)
            rest = await collect(server, given, **fields, resumed=(None, tuple(said[1][:cut])))
            assert {chunk.index for chunk in rest} == {1}
            assert tokens_of(rest) == said[1][cut:]
            assert text.endswith("".join(chunk.text for chunk in rest))
            account = rest[-1].marketplace
            assert account is not None
            assert account.completion_tokens == 24 - cut
            assert (account.segments[0].from_token, account.segments[-1].to_token) == (cut, 24)
        mine = [one for one in office.records if one.request_id == given.request_id]
        assert sum(one.completion_tokens for one in mine) == 24 - cut

    asyncio.run(story())


def test_echoed_prompt_is_scored_journaled_and_charged_as_computed(world: World, tmp_path: Path) -> None:
    """Scores are those of the plain forward pass; scored tokens are in journal and account, with shares."""

    async def story() -> None:
        office = Office()
        await office.publish(world.snapshot(1))
        async with running(world, office, tmp_path) as server:
            ids = tuple(world.tokenizer.encode("the quick brown fox"))
            given = admission(world, tokens=len(ids) + 2)
            chunks = await collect(
                server, given, prompt=None, prompt_token_ids=ids, echo=True, logprobs=2, max_tokens=2
            )
            scored = chunks[0].prompt
            assert scored is not None
            assert scored.text == "the quick brown fox"
            logits = forward_logits(server.room.bank, ids, world.digests(*OWNERS), 4).float()
            wanted = torch.log_softmax(logits[:-1], -1).gather(-1, torch.tensor(ids)[1:, None]).flatten()
            found = [one.logprob for one in scored.logprobs or ()]
            assert found[0] is None
            assert torch.allclose(torch.tensor(found[1:], dtype=torch.float32), wanted, atol=1e-5)
            assert [one.token_id for one in scored.logprobs or ()] == list(ids)
            assert len(tokens_of(chunks)) == 2
            account = chunks[-1].marketplace
            assert account is not None
            assert (account.scored_tokens, account.completion_tokens) == (len(ids) - 1, 2)
            assert [part.part for part in account.segments] == ["prompt", "answer"]
            only = admission(world, tokens=len(ids))
            last = await collect(server, only, prompt="the quick", echo=True, logprobs=0, max_tokens=0)
            assert [chunk.finish_reason for chunk in last] == [None, "length"]
            with pytest.raises(PromptRefused):
                await collect(
                    server,
                    admission(world, tokens=1),
                    prompt="the quick",
                    echo=True,
                    logprobs=0,
                    max_tokens=0,
                )
        mine = [one for one in office.records if one.request_id == given.request_id]
        assert sum(one.completion_tokens for one in mine) == len(ids) - 1 + 2
        assert sum(one.prompt_tokens for one in mine) == len(ids)
        assert sum(sum(one.experts.values()) for one in mine) == (len(ids) + 1) * 1_000_000
        assert [one.final for one in office.records if one.request_id == only.request_id][-1]

    asyncio.run(story())

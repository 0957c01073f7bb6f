# SPDX-License-Identifier: Apache-2.0
"""A model host answers: what it journals and accounts, what it refuses, and how an answer ends or goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from cluster.hosting.errors import DeploymentNotHosted, HostOverloaded, PromptRefused
from cluster.hosting.journals import journal_records
from cluster.hosting.messages import GenerationRequest
from model_core.network.bank import forward_logits
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

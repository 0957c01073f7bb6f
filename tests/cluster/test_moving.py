# SPDX-License-Identifier: Apache-2.0
"""Answers that outlive their replica: what the client sees, and what is admitted for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.moving import MOVABLE, generate_through
from cluster.hosting.errors import HostOverloaded, HostStopping, PromptRefused, ReplicaLost
from cluster.hosting.messages import GenerationAccount, GenerationChunk, GenerationRequest, Segment
from cluster.office.protocol import Admission
from policy.errors import BudgetExceeded
from tests.cluster.admissions import admitted

PROMPT_TOKENS = 5


class Hosts:
    """Hosts that know one endless text per choice, and are lost after as many tokens as a list says."""

    def __init__(self, losses: list[int], error: Exception | None = None) -> None:
        self.losses = losses
        self.error = error or ReplicaLost("Gone.")
        self.computed: dict[str, int] = {}
        self.asked: list[GenerationRequest] = []
        self.closed = 0

    async def generate(
        self, admission: Admission, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Choice ``i`` says the numbers from ``1000 * i`` on, choices in turns."""
        self.asked.append(request)
        patience = self.losses.pop(0) if self.losses else 10**9
        said = {index: list(request.said(index)) for index in request.open_choices}
        own: list[Segment] = []
        told = False
        try:
            while said:
                for index in list(said):
                    if self.computed.get(admission.request_id, 0) >= patience:
                        raise self.error
                    self.computed[admission.request_id] = self.computed.get(admission.request_id, 0) + 1
                    token = 1000 * index + len(said[index])
                    segment = Segment(
                        index=index,
                        epoch=1,
                        composition_digest="c",
                        from_token=len(said[index]),
                        to_token=len(said[index]) + 1,
                        experts={"public": 1_000_000},
                    )
                    own.append(segment)
                    said[index].append(token)
                    done = len(said[index]) == request.max_tokens
                    if done:
                        del said[index]
                    yield GenerationChunk(
                        index=index,
                        token_ids=(token,),
                        text=f"{token} ",
                        finish_reason="length" if done else None,
                        segments=(segment,),
                        prompt_tokens=None if told else PROMPT_TOKENS,
                        marketplace=None if said else self._account(admission, own),
                    )
                    told = True
        finally:
            self.closed += 1

    def _account(self, admission: Admission, own: list[Segment]) -> GenerationAccount:
        return GenerationAccount(
            request_id=admission.request_id,
            prompt_tokens=PROMPT_TOKENS,
            completion_tokens=len(own),
            segments=tuple(own),
        )

    async def score(self, *_: Any) -> Any:
        """Not asked."""

    async def probe(self, *_: Any) -> Any:
        """Not asked."""


class Office:
    """Admits again, and notes for how much."""

    def __init__(self, refuses: Exception | None = None) -> None:
        self.admitted: list[int] = []
        self.freed: list[str] = []
        self.refuses = refuses

    async def admit(self, tokens: int) -> Admission:
        """A new reservation."""
        if self.refuses is not None:
            raise self.refuses
        self.admitted.append(tokens)
        return admitted(f"r{len(self.admitted)}", reserved_tokens=tokens)

    async def free(self, request_id: str) -> None:
        """A reservation that nobody needs."""
        self.freed.append(request_id)


def _collect(hosts: Hosts, office: Office, tokens: int, n: int) -> list[GenerationChunk]:
    async def story() -> list[GenerationChunk]:
        request = GenerationRequest(prompt="x", max_tokens=tokens, n=n)
        stream = generate_through(
            hosts, office.admit, office.free, admitted("r0", reserved_tokens=tokens * n), request
        )
        return [chunk async for chunk in stream]

    return asyncio.run(story())


@given(st.integers(1, 12), st.integers(1, 3), st.lists(st.integers(0, 20), max_size=2))
def test_client_sees_one_whole_answer_whatever_is_lost(tokens: int, n: int, losses: list[int]) -> None:
    """Every token once and in order, one account over all, and no admission beyond what is still wanted."""
    hosts, office = Hosts(list(losses)), Office()
    chunks = _collect(hosts, office, tokens, n)
    for index in range(n):
        mine = [chunk for chunk in chunks if chunk.index == index]
        assert [token for chunk in mine for token in chunk.token_ids] == [
            1000 * index + place for place in range(tokens)
        ]
        assert [chunk.finish_reason for chunk in mine].count("length") == 1
    assert [chunk.prompt_tokens for chunk in chunks if chunk.prompt_tokens is not None] == [PROMPT_TOKENS]
    account = chunks[-1].marketplace
    assert account is not None
    assert account.request_id == "r0"
    assert account.continued_as == tuple(f"r{k + 1}" for k in range(len(office.admitted)))
    assert account.completion_tokens == tokens * n
    assert sorted((s.index, s.from_token, s.to_token) for s in account.segments) == (
        [(i, 0, tokens) for i in range(n)] if office.admitted else sorted(_single(tokens, n))
    )
    reserved = {"r0": tokens * n} | {f"r{k + 1}": held for k, held in enumerate(office.admitted)}
    assert all(count <= reserved[name] for name, count in hosts.computed.items())
    assert sum(hosts.computed.values()) == tokens * n
    assert hosts.closed == len(hosts.asked)


def _single(tokens: int, n: int) -> list[tuple[int, int, int]]:
    return [(i, k, k + 1) for i in range(n) for k in range(tokens)]


def test_refusals_do_not_move() -> None:
    """What is wrong with the request is wrong everywhere."""
    hosts, office = Hosts([2], PromptRefused("Too long.")), Office()
    with pytest.raises(PromptRefused):
        _collect(hosts, office, 5, 1)
    assert office.admitted == []


def test_a_draining_host_gives_its_answer_away() -> None:
    """The error of a host that is told to stop is one that moves."""
    assert HostStopping in MOVABLE
    hosts, office = Hosts([2], HostStopping("Ending.")), Office()
    assert len(_collect(hosts, office, 5, 1)) == 5
    assert office.admitted == [3]


def test_without_a_new_admission_the_answer_ends_with_the_refusal() -> None:
    """A key that was revoked or a budget that is spent meanwhile ends the answer."""
    hosts, office = Hosts([2]), Office(BudgetExceeded("Spent."))
    with pytest.raises(BudgetExceeded):
        _collect(hosts, office, 5, 1)


def test_endless_losses_end() -> None:
    """After a few moves without luck the client is told."""
    hosts, office = Hosts([0] * 50), Office()
    with pytest.raises(ReplicaLost):
        _collect(hosts, office, 5, 1)
    assert len(office.admitted) == 4


@pytest.mark.parametrize("losses", [[], [3], [0, 2]])
def test_only_holds_of_which_nothing_was_computed_are_given_back(losses: list[int]) -> None:
    """A refusal frees its own hold; a lost host may have journaled tokens, so its own record comes first."""

    class Full(Hosts):
        async def generate(
            self, admission: Admission, request: GenerationRequest
        ) -> AsyncGenerator[GenerationChunk, None]:
            if not self.losses:
                raise HostOverloaded("Busy.")
            async for chunk in super().generate(admission, request):
                yield chunk

    office = Office()
    with pytest.raises(HostOverloaded):
        _collect(Full(list(losses)), office, 9, 1)
    assert office.freed == [f"r{len(losses)}"]

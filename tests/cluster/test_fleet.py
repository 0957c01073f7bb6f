# SPDX-License-Identifier: Apache-2.0
"""A gateway's fleet over replicas in the same process: placement, overload, loss, silence, drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

import pytest

from cluster.errors import HostUnavailable
from cluster.gateway.fleet import Fleet
from cluster.hosting.errors import HostOverloaded, HostStopping, PromptRefused, ReplicaLost
from cluster.hosting.lines import Frame, Switchboard
from cluster.hosting.messages import GenerationChunk, GenerationRequest
from cluster.office.protocol import Admission
from model_core.errors import ProductError
from tests.cluster.admissions import admitted


class Replica:
    """A scripted host with a switchboard."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.board = Switchboard(self.generate, lambda: self.running, beat_s=0.02)
        self.running = 0
        self.room = 100
        self.refuses: ProductError | None = None
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.began: list[str] = []
        self.paused = False
        self.frames: list[Frame] = []

    async def generate(
        self, admission: Admission, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Counts, after its first token only while it may go on."""
        if self.running >= self.room:
            raise HostOverloaded("Busy.", retry_after_s=1)
        if self.refuses is not None:
            raise self.refuses
        self.began.append(admission.request_id)
        self.running += 1
        try:
            for place in range(request.max_tokens):
                if place:
                    await self.go_on.wait()
                yield GenerationChunk(token_ids=(place,), text=self.name)
        finally:
            self.running -= 1


class Town:
    """Replicas and the transport between them and a fleet."""

    def __init__(self, *names: str, **fleet: Any) -> None:
        self.replicas = {name: Replica(name) for name in names}
        self.cut: dict[str, asyncio.Event] = {name: asyncio.Event() for name in names}
        self.listeners: list[Callable[[frozenset[str]], None]] = []
        self.fleet = Fleet(self, **({"wait_s": 0.05, "silence_s": 5.0, "drain_s": 5.0} | fleet))

    def listen(self, listener: Callable[[frozenset[str]], None]) -> None:
        """As the transport."""
        self.listeners.append(listener)
        listener(frozenset(self.replicas))

    def announce(self, *names: str) -> None:
        """Other replicas from now on."""
        for listener in self.listeners:
            listener(frozenset(names))

    async def line(self, replica: str, name: str) -> AsyncGenerator[Frame, None]:
        """As the transport; ends like a broken connection when it is cut."""
        frames = self.replicas[replica].board.line(name)
        try:
            async for frame in frames:
                while self.replicas[replica].paused:
                    await asyncio.sleep(0.005)
                if self.cut[replica].is_set():
                    raise ConnectionError
                self.replicas[replica].frames.append(frame)
                yield frame
        finally:
            await frames.aclose()

    async def begin(
        self, replica: str, name: str, stream: str, admission: Admission, request: GenerationRequest
    ) -> None:
        """As the transport."""
        await self.replicas[replica].board.begin(name, stream, admission, request)

    async def drop(self, replica: str, name: str, streams: tuple[str, ...]) -> None:
        """As the transport."""
        self.replicas[replica].board.drop(name, streams)

    async def keep(self, replica: str, name: str) -> None:
        """As the transport."""
        self.replicas[replica].board.keep(name)

    async def ready(self) -> Town:
        """Once every replica takes requests."""
        await until(lambda: set(self.fleet.replicas) == set(self.replicas))
        return self

    def ask(
        self, request_id: str = "r", tokens: int = 3, deployment: str = "d", n: int = 1
    ) -> AsyncGenerator[GenerationChunk, None]:
        """One request."""
        asked = GenerationRequest(prompt="x", max_tokens=tokens, n=n)
        return self.fleet.generate(admitted(request_id, deployment=deployment), asked)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def told(story: Any) -> Any:
    """Runs a story and ends what it started."""

    async def whole() -> Any:
        return await asyncio.wait_for(story(), 20)

    return asyncio.run(whole())


def test_full_replica_is_passed_over_and_only_all_full_is_busy() -> None:
    """A refusal for lack of room goes unnoticed while another replica has room."""

    async def story() -> None:
        town = await Town("a", "b").ready()
        first = (await anext(town.ask())).text
        town.replicas[first].room = 0
        assert [chunk.text async for chunk in town.ask()] == [{"a": "b", "b": "a"}[first]] * 3
        for replica in town.replicas.values():
            replica.room = 0
        with pytest.raises(HostOverloaded) as caught:
            await anext(town.ask())
        assert caught.value.facts["retry_after_s"] == 1
        await town.fleet.close()

    told(story)


def test_refusals_are_not_tried_elsewhere() -> None:
    """What one replica refuses for the request's sake every other would refuse too."""

    async def story() -> None:
        town = await Town("a", "b").ready()
        for replica in town.replicas.values():
            replica.refuses = PromptRefused("Too long.")
        with pytest.raises(PromptRefused):
            await anext(town.ask())
        await town.fleet.close()

    told(story)


def test_load_of_one_replica_sends_the_same_prefix_to_the_next() -> None:
    """Twenty open answers of one prefix overload no replica of two."""

    async def story() -> None:
        town = await Town("a", "b").ready()
        for replica in town.replicas.values():
            replica.go_on.clear()
        streams = [town.ask(f"r{n}") for n in range(20)]
        for stream in streams:
            await anext(stream)
        counts = sorted(len(replica.began) for replica in town.replicas.values())
        assert sum(counts) == 20
        assert counts[0] >= 7
        for stream in streams:
            await stream.aclose()
        await until(lambda: all(replica.running == 0 for replica in town.replicas.values()))
        await town.fleet.close()

    told(story)


def test_broken_line_loses_its_streams_and_no_others() -> None:
    """Streams of the broken line end with the error that lets another replica go on."""

    async def story() -> None:
        town = await Town("a", "b").ready()
        for replica in town.replicas.values():
            replica.go_on.clear()
        streams = [town.ask(f"r{n}", deployment=f"d{n}") for n in range(12)]
        firsts = [(await anext(stream)).text for stream in streams]
        assert set(firsts) == {"a", "b"}
        town.cut["a"].set()
        for stream, first in zip(streams, firsts, strict=True):
            if first == "a":
                with pytest.raises(ReplicaLost):
                    await anext(stream)
        town.replicas["b"].go_on.set()
        for stream, first in zip(streams, firsts, strict=True):
            if first == "b":
                assert len([chunk async for chunk in stream]) == 2
        await until(lambda: set(town.fleet.replicas) == {"b"})
        await town.fleet.close()

    told(story)


def test_silent_replica_is_given_up_and_taken_back_when_it_speaks() -> None:
    """A paused replica loses its streams after the silence, gets nothing new, and is back when it wakes."""

    async def story() -> None:
        town = await Town("a", "b", silence_s=0.3).ready()
        for replica in town.replicas.values():
            replica.go_on.clear()
        stream = town.ask()
        name = (await anext(stream)).text
        town.replicas[name].paused = True
        with pytest.raises(ReplicaLost):
            await anext(stream)
        for replica in town.replicas.values():
            replica.go_on.set()
        assert name not in town.fleet.replicas
        assert [chunk.text async for chunk in town.ask()] == [{"a": "b", "b": "a"}[name]] * 3
        town.replicas[name].paused = False
        await until(lambda: name in town.fleet.replicas)
        await town.fleet.close()

    told(story)


def test_leaving_replica_finishes_what_it_has_and_gets_nothing_new() -> None:
    """A replica that is no longer announced drains; its line ends when its last stream has."""

    async def story() -> None:
        town = await Town("a", "b").ready()
        for replica in town.replicas.values():
            replica.go_on.clear()
        stream = town.ask()
        name = (await anext(stream)).text
        other = {"a": "b", "b": "a"}[name]
        town.announce(other)
        await until(lambda: set(town.fleet.replicas) == {other})
        town.replicas[other].go_on.set()
        assert [chunk.text async for chunk in town.ask()] == [other] * 3
        town.replicas[name].go_on.set()
        assert [chunk.text async for chunk in stream] == [name] * 2
        await town.fleet.close()

    told(story)


def test_drain_is_bounded() -> None:
    """What a leaving replica has not finished in time is given away with an error that lets others go on."""

    async def story() -> None:
        town = await Town("a", "b", drain_s=0.05).ready()
        for replica in town.replicas.values():
            replica.go_on.clear()
        stream = town.ask()
        name = (await anext(stream)).text
        town.announce(*(set("ab") - {name}))
        with pytest.raises(HostStopping):
            await anext(stream)
        await town.fleet.close()

    told(story)


def test_request_waits_for_a_replica_to_come() -> None:
    """Without a replica a request waits a while, and then says that none runs."""

    async def story() -> None:
        town = Town()
        with pytest.raises(HostUnavailable):
            await anext(town.ask())
        await town.fleet.close()
        late = Town("a", wait_s=10.0)
        late.announce()
        asking = asyncio.ensure_future(anext(late.ask()))
        await asyncio.sleep(0)
        late.announce("a")
        assert (await asking).text == "a"
        await late.fleet.close()

    told(story)


def test_everything_of_a_step_leaves_in_one_frame() -> None:
    """Ten streams that are set free together arrive in one message."""

    async def story() -> None:
        town = await Town("a").ready()
        town.replicas["a"].go_on.clear()
        streams = [town.ask(f"r{n}", tokens=2) for n in range(10)]
        for stream in streams:
            await anext(stream)
        town.replicas["a"].go_on.set()
        for stream in streams:
            with suppress(StopAsyncIteration):
                await anext(stream)
        sizes = [len(frame.items) for frame in town.replicas["a"].frames if frame.items]
        assert 20 in sizes  # ten tokens and ten ends
        await town.fleet.close()

    told(story)


def test_gateway_that_is_gone_holds_no_streams() -> None:
    """A line on which nobody says that he listens ends, and its streams with it."""

    async def story() -> None:
        replica = Replica("a")
        replica.go_on.clear()
        replica.board = Switchboard(replica.generate, lambda: replica.running, beat_s=0.01, deaf_s=0.1)
        frames = replica.board.line("gateway")
        await anext(frames)
        town = Town()
        admission = admitted()
        await replica.board.begin("gateway", "s", admission, GenerationRequest(prompt="x", max_tokens=3))
        await until(lambda: replica.running == 1)
        for _ in range(30):  # as long as somebody says so it goes on
            replica.board.keep("gateway")
            await anext(frames)
        assert replica.running == 1
        assert [frame async for frame in frames]
        await until(lambda: replica.running == 0)
        assert replica.board.tokens == 0
        with pytest.raises(HostStopping):
            await replica.board.begin("gateway", "t", admission, GenerationRequest(prompt="x", max_tokens=3))
        await town.fleet.close()

    told(story)


def test_reader_that_leaves_before_its_request_has_begun_leaves_nothing_running() -> None:
    """Beginning and ending are calls of their own; whichever the replica hears first, nothing runs on."""

    async def story() -> None:
        town = await Town("a").ready()
        replica, plain = town.replicas["a"], town.begin
        replica.go_on.clear()
        held = asyncio.Event()
        dropped: list[str] = []

        async def late(*call: Any) -> None:
            await held.wait()
            await plain(*call)

        async def drop(replica: str, name: str, streams: tuple[str, ...]) -> None:
            dropped.extend(streams)
            town.replicas[replica].board.drop(name, streams)

        town.begin, town.drop = late, drop  # type: ignore[method-assign]
        asking = asyncio.ensure_future(anext(town.ask(tokens=1000)))
        await until(lambda: bool(town.fleet._wires["a"]._inboxes))
        asking.cancel()
        await until(lambda: bool(dropped))
        held.set()
        await until(lambda: len(dropped) == 2)
        await until(lambda: not replica.running)
        assert len(set(dropped)) == 1
        assert not any(line.streams for line in replica.board._lines.values())
        await town.fleet.close()

    told(story)


def test_reader_that_is_slow_holds_no_leaving_replica_back() -> None:
    """What has ended there is kept here; the line ends although nobody has read the answer yet."""

    async def story() -> None:
        town = await Town("a", "b").ready()
        stream = town.ask()
        name = (await anext(stream)).text
        await until(lambda: town.replicas[name].running == 0)
        town.announce(*(set("ab") - {name}))
        await until(lambda: name not in town.fleet._wires)
        assert [chunk.text async for chunk in stream] == [name] * 2
        await town.fleet.close()

    told(story)


def test_a_replica_that_dies_over_the_beginning_of_a_request_is_lost_and_no_refusal() -> None:
    """Only a loss lets another replica go on; what Ray calls it does not matter."""
    from ray.exceptions import ActorDiedError, ActorUnavailableError, OwnerDiedError

    from cluster.gateway.deploy import ServedTransport

    class Handle:
        def __init__(self, error: Exception) -> None:
            self.error = error
            self.begin = self

        def options(self, **_: Any) -> Handle:
            return self

        async def remote(self, *_: Any) -> None:
            raise self.error

    async def story() -> None:
        for error in (ActorDiedError(), ActorUnavailableError("", None), OwnerDiedError("", None, "")):
            transport = ServedTransport("a", Handle(error))
            with pytest.raises(ReplicaLost):
                await transport.begin("r", "l", "s", admitted(), GenerationRequest(prompt="x", max_tokens=1))

    told(story)


def test_handles_of_replicas_that_left_are_not_kept() -> None:
    """However many replicas come and go, there is a handle for each one that is there, and made once."""
    from cluster.gateway.deploy import ServedTransport
    from cluster.hosting.announcements import announce

    made: list[tuple[str, bool]] = []
    heard: list[frozenset[str]] = []

    class Handle:
        def options(self, *, session_id: str = "", stream: bool = False) -> Handle:
            made.append((session_id, stream))
            return self

    transport = ServedTransport("of-many", Handle())
    transport.listen(heard.append)
    for number in range(5):
        there = frozenset({f"r{number}", "stays"})
        announce("of-many", there)
        for name in (*there, *there, f"r{number - 1}"):  # the last one drains what it has
            transport._to(name)
    assert heard[-1] == there
    assert transport._targeted.keys() == there
    assert made.count(("stays", False)) == 1

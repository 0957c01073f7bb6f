# SPDX-License-Identifier: Apache-2.0
"""What a token costs on its way out does not grow: no timer, no object and no document of its own for it."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.openai_shapes import Shape, sent
from cluster.gateway.patience import Patience
from cluster.hosting.errors import HostOverloaded
from cluster.hosting.inbox import Inbox
from cluster.hosting.lines import Frame, StreamEnd
from cluster.hosting.messages import GenerationChunk, Segment, added_shares, joined_segments

TURNS = 50


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts the timers that are set."""

    timers = 0

    def call_at(self, *arguments: Any, **options: Any) -> asyncio.TimerHandle:
        """As the loop's own."""
        self.timers += 1
        return super().call_at(*arguments, **options)


def timers_of(story: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """How many timers a story sets."""
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        runner.run(story())
        loop = runner.get_loop()
        assert isinstance(loop, CountingLoop)
        return loop.timers


def test_stream_at_the_host_sets_one_timer_for_all_its_tokens() -> None:
    """Many waits, each of them answered, take one timer."""

    async def story() -> None:
        inbox, choice, item = Inbox(), object(), object()
        for _ in range(TURNS):
            asyncio.get_running_loop().call_soon(inbox.put, choice, item)
            assert await inbox.wait(60.0)
            assert inbox.take() == {choice: [item]}
        inbox.close()

    assert timers_of(story) == 1


def test_stream_at_the_gateway_sets_one_timer_for_all_its_chunks() -> None:
    """Many waits with one bound take one timer; a shorter bound takes another."""

    async def story() -> None:
        patience = Patience()
        for _ in range(TURNS):
            assert await patience.wait(asyncio.sleep(0, "chunk"), 60.0) == "chunk"
        assert await patience.wait(asyncio.sleep(0, "chunk"), 30.0) == "chunk"
        patience.close()

    assert timers_of(story) == 2


def test_wait_that_lasts_too_long_ends_although_an_earlier_one_set_the_timer() -> None:
    """The timer of an answered wait says of the next one only that it is over when it is."""

    async def story() -> None:
        patience, inbox, forever = Patience(), Inbox(), asyncio.Event()
        await patience.wait(asyncio.sleep(0), 0.01)
        with pytest.raises(TimeoutError):
            await patience.wait(forever.wait(), 0.02)
        asyncio.get_running_loop().call_soon(inbox.put, object(), object())
        assert await inbox.wait(0.01)
        inbox.take()
        assert not await inbox.wait(0.02)

    timers_of(story)


def test_wait_that_is_cancelled_from_outside_is_no_timeout() -> None:
    """Whoever ends the task sees it cancelled, whatever the bound."""

    async def story() -> None:
        waiting = asyncio.create_task(Patience().wait(asyncio.Event().wait(), 60.0))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    timers_of(story)


@given(text=st.text(min_size=1), index=st.integers(0, 1), chat=st.booleans(), model=st.text())
def test_text_events_are_those_that_the_long_way_makes(text: str, index: int, chat: bool, model: str) -> None:
    """An event of text alone is, byte for byte, the document that any other event goes through."""

    def shape() -> Shape:
        return Shape(chat=chat, model=model, request_ids=["req_1"], n=2, logprobs=False)

    chunk = GenerationChunk(index=index, token_ids=(1,), text=text)
    quick, slow = shape(), shape()
    try:
        expected = [sent(event) for event in slow.events(chunk)]
    except UnicodeEncodeError:  # half a character: the tokenizer never makes one
        return
    assert [quick.text_event(chunk), quick.text_event(chunk)] == expected * 2
    assert quick.usage()["completion_tokens"] == 2 * slow.usage()["completion_tokens"]
    assert json.loads(expected[0][6:])["model"] == model


@pytest.mark.parametrize("end", [*"\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"], ids=ascii)
def test_no_text_ends_the_line_of_its_event(end: str) -> None:
    """A client that splits decoded text at whatever Unicode calls the end of a line reads whole events."""
    shape = Shape(chat=False, model="m", request_ids=["req_1"], n=1, logprobs=False)
    text = f"before{end}after"
    event = shape.text_event(GenerationChunk(index=0, token_ids=(1,), text=text))
    for written in (event, sent({"choices": [{"text": text}]})):
        assert written is not None
        line, *rest = written.decode().splitlines()
        assert rest == [""]
        assert json.loads(line.removeprefix("data: "))["choices"][0]["text"] == text


@pytest.mark.parametrize("changes", [{"finish_reason": "stop"}, {"text": ""}])
def test_events_that_say_more_go_the_long_way(changes: dict[str, Any]) -> None:
    """What carries more or less than text is not taken for a text event."""
    shape = Shape(chat=False, model="m", request_ids=["req_1"], n=1, logprobs=False)
    assert shape.text_event(GenerationChunk(**{"text": "a", **changes})) is None
    assert shape.usage()["completion_tokens"] == 0


segments = st.lists(
    st.builds(
        lambda digest, epoch, to_epoch, ppm, length: (digest, epoch, to_epoch, {"public": ppm}, length),
        st.sampled_from("ab"),
        st.integers(1, 3),
        st.none() | st.integers(1, 3),
        st.integers(0, 9),
        st.integers(1, 2),
    ),
    max_size=6,
)


@given(told=segments)
def test_joining_many_segments_is_joining_one_after_the_other(told: list[Any]) -> None:
    """Runs joined at once and runs joined step by step say the same."""
    place, each = 0, []
    for digest, epoch, to_epoch, experts, length in told:
        each.append(
            Segment(
                epoch=epoch,
                to_epoch=to_epoch,
                composition_digest=digest,
                from_token=place,
                to_token=place + length,
                experts=experts,
            )
        )
        place += length
    stepwise: tuple[Segment, ...] = ()
    for one in each:
        stepwise = joined_segments((*stepwise, one))
    assert joined_segments(each) == stepwise
    total: dict[str, int] = {}
    for one in each:
        total = added_shares(total, one.experts)
    assert sum(one.experts["public"] for one in stepwise) == total.get("public", 0)


def test_frame_crosses_processes_as_bytes() -> None:
    """What carries frames sees one string of bytes, and what comes out is what went in."""
    end = StreamEnd(error=HostOverloaded("Full.", retry_after_s=1))
    frame = Frame(3, (("str_1", GenerationChunk(token_ids=(1,), text="a")), ("str_2", end)))
    _, (packed,) = frame.__reduce__()
    assert isinstance(packed, bytes)
    came = pickle.loads(pickle.dumps(frame))  # noqa: S301  (our own)
    assert (came.in_flight, came.items[0]) == (3, frame.items[0])
    assert came.items[1][1].error.code == end.error.code  # type: ignore[union-attr]


@pytest.mark.parametrize(("epochs", "ended"), [((1, 1, 1), None), ((1, 2, 2), 2), ((1, 3, 1), 3)])
def test_joined_run_names_a_later_epoch_only_where_there_was_one(
    epochs: tuple[int, ...], ended: int | None
) -> None:
    """A run that began and ended in one epoch says no more than that."""
    each = [
        Segment(epoch=epoch, composition_digest="a", from_token=n, to_token=n + 1, experts={})
        for n, epoch in enumerate(epochs)
    ]
    (joined,) = joined_segments(each)
    assert (joined.epoch, joined.to_epoch, joined.to_token) == (1, ended, len(epochs))

# SPDX-License-Identifier: Apache-2.0
"""The way out of a host, token by token: text, stop texts, the gate, void generations."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.hosting.choice import Choice, Failure, Label, StepToken, TextAssembler
from cluster.hosting.endings import ended
from cluster.hosting.errors import HostStopping, JournalDamaged, LeaseLost
from cluster.hosting.messages import GenerationChunk, GenerationRequest, Segment, joined_segments
from cluster.hosting.release import Release
from cluster.office.protocol import UsageRecord
from model_core.engine.requests import Sampling, TokenEvent
from tests.cluster.admissions import admitted


def decode(ids: Sequence[int]) -> str:
    """Tokens are bytes."""
    return bytes(ids).decode(errors="replace")


class Gate:
    """Open or closed as its script says, one word per look; the last word stays."""

    sealed = False

    def __init__(self, *script: bool) -> None:
        self.script = list(script)

    def is_open(self) -> bool:
        """The next word."""
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def closed_for_us(self) -> int:
        """For long, if closed."""
        return 0 if self.script[0] else 10**9


class Journal:
    """Keeps records; may be broken."""

    def __init__(self) -> None:
        self.records: list[UsageRecord] = []
        self.broken = False

    def append(self, records: Sequence[UsageRecord]) -> None:
        """Notes them."""
        if self.broken:
            raise JournalDamaged("The disk is full.")
        self.records += records

    def open(self, record: UsageRecord) -> None:
        """Nothing to note."""


class Way:
    """One request with one choice on its way out."""

    def __init__(self, gate: Gate, **fields: Any) -> None:
        self.journal = Journal()
        self.left: list[Choice] = []
        self.release = Release(
            admission=admitted("req_1", epoch=3, composition_digest="c3"),
            request=GenerationRequest(prompt="x", max_tokens=100, **fields),
            prompt_tokens=5,
            journal=self.journal,  # type: ignore[arg-type]
            gate=gate,  # type: ignore[arg-type]
            decode=decode,
            names=lambda _, digest: digest,
        )
        self.choice = Choice(
            name="req_1/0",
            index=0,
            deployment="lab",
            consumer="app",
            prompt_ids=(1,),
            sampling=Sampling(),
            notify=lambda *_: None,
        )

    def compute(
        self, text: str | bytes, *, finished: bool = False, generation: int = 0, epoch: int = 3
    ) -> None:
        """Tokens arrive from the engine."""
        ids = text.encode() if isinstance(text, str) else text
        for place, token in enumerate(ids):
            event = TokenEvent(
                request_id="req_1/0#0",
                token_id=token,
                logprob=-1.0,
                top_logprobs=(),
                attribution_ppm={"public": 250_000, "e": 750_000},
                finished="length" if finished and place == len(ids) - 1 else None,
            )
            label = Label(epoch=epoch, composition_digest=f"c{epoch}")
            self.release.put(self.choice, StepToken(generation=generation, label=label, event=event))

    def collect(self, hold_s: float = 1.0) -> list[GenerationChunk]:
        """Everything that leaves."""

        async def story() -> list[GenerationChunk]:
            return [chunk async for chunk in self.release.chunks(hold_s, self.left.append)]

        return asyncio.run(story())


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=3), max_size=3), st.data())
def test_text_is_that_of_the_tokens_up_to_the_first_stop(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    """However characters are cut into tokens, and with garbage bytes in between."""
    ids = list(text.encode()) + data.draw(st.lists(st.integers(128, 255), max_size=6))
    assembler = TextAssembler(decode, stops)
    shown = ""
    for token in ids:
        shown += assembler.add(token)
        if assembler.stopped:
            break
    shown += assembler.flush()
    whole = decode(ids)
    if assembler.stopped:
        assert whole.startswith(shown)
        assert any(whole[len(shown) :].startswith(stop) for stop in stops)
        assert not any(stop in shown for stop in stops)
    else:
        assert shown == whole
        assert not any(stop in whole for stop in stops)


def test_every_released_token_was_journaled_before() -> None:
    """Records of a chunk are written first, the first carries the prompt, the last is final."""
    way = Way(Gate(True))
    way.compute("hello ")
    way.compute("you", finished=True, epoch=4)
    chunks = way.collect()
    assert "".join(chunk.text for chunk in chunks) == "hello you"
    records = way.journal.records
    assert [(one.epoch, one.completion_tokens, one.prompt_tokens, one.final) for one in records] == [
        (3, 6, 5, False),
        (4, 3, 0, True),
    ]
    assert records[0].experts == {"public": 1_500_000, "e": 4_500_000}
    account = chunks[-1].marketplace
    assert account is not None
    assert [(part.epoch, part.from_token, part.to_token) for part in account.segments] == [
        (3, 0, 6),
        (4, 6, 9),
    ]
    assert way.left == [way.choice]


def test_a_run_under_one_composition_tells_the_epochs_in_which_it_was_computed() -> None:
    """Publications that left a choice's set alone make no new segment, and leave their number."""

    def run(epoch: int, begin: int, composition: str = "c", to_epoch: int | None = None) -> Segment:
        return Segment(
            epoch=epoch,
            to_epoch=to_epoch,
            composition_digest=composition,
            from_token=begin,
            to_token=begin + 2,
            experts={"public": 2_000_000},
        )

    assert joined_segments([run(3, 0), run(3, 2)])[0].to_epoch is None
    whole, other = joined_segments([run(3, 0), run(4, 2), run(5, 4, to_epoch=6), run(7, 6, "d")])
    assert (whole.epoch, whole.to_epoch, whole.from_token, whole.to_token) == (3, 6, 0, 6)
    assert (other.epoch, other.to_epoch) == (7, None)


def test_what_cannot_be_journaled_is_not_released() -> None:
    """A full disk ends the stream without the tokens."""
    way = Way(Gate(True))
    way.journal.broken = True
    way.compute("hello", finished=True)
    with pytest.raises(JournalDamaged):
        way.collect()


def test_closed_gate_holds_tokens_back_and_journals_nothing() -> None:
    """Not even a record is written for what may never leave."""
    way = Way(Gate(False))
    way.compute("hello", finished=True)
    with pytest.raises(LeaseLost):
        way.collect()
    assert way.journal.records == []


def test_void_generation_never_leaves() -> None:
    """Tokens of an earlier generation are dropped, those of the present one leave."""
    way = Way(Gate(True))
    way.compute("forbidden")
    way.choice.generation = 1
    way.compute("fine", finished=True, generation=1, epoch=4)
    chunks = way.collect()
    assert "".join(chunk.text for chunk in chunks) == "fine"
    assert sum(one.completion_tokens for one in way.journal.records) == 4


def test_set_that_changes_between_journal_and_release_withdraws_the_chunk() -> None:
    """The gate closes right after the journal; before it opens again the expert is gone: nothing is shown."""
    gate = Gate(True, False, True)
    way = Way(gate)
    way.compute("forbidden", finished=True)
    looks = gate.is_open

    def look() -> bool:
        if len(gate.script) == 2:
            way.choice.generation += 1
        return looks()

    gate.is_open = look  # type: ignore[method-assign]
    chunks = way.collect()
    assert [(chunk.text, chunk.finish_reason) for chunk in chunks] == [("", "withdrawn")]
    account = chunks[-1].marketplace
    assert account is not None
    assert account.ended == ended("expert_withdrawn")
    assert way.left == [way.choice]


def test_stop_text_ends_the_choice_and_later_tokens_are_not_charged() -> None:
    """Tokens behind the stop text were computed in vain."""
    way = Way(Gate(True), stop=("STOP",))
    way.compute("one STOP two")
    chunks = way.collect()
    assert "".join(chunk.text for chunk in chunks) == "one "
    assert chunks[-1].finish_reason == "stop"
    assert sum(one.completion_tokens for one in way.journal.records) == len("one STOP")


def test_failure_and_shutdown_reach_the_stream() -> None:
    """An error of the engine is raised where the answer is read; an ending host says so."""
    way = Way(Gate(True))
    way.release.put(way.choice, Failure(error=HostStopping("Ending.")))
    with pytest.raises(HostStopping):
        way.collect()
    gate = Gate(False)
    gate.sealed = True
    way = Way(gate)
    way.compute("x")
    with pytest.raises(HostStopping):
        way.collect()


def test_request_that_ended_early_is_closed_once() -> None:
    """A final record frees the reservation, whether or not anything was released."""
    way = Way(Gate(True))
    way.release.close()
    way.release.close()
    assert [(one.prompt_tokens, one.completion_tokens, one.final) for one in way.journal.records] == [
        (0, 0, True)
    ]

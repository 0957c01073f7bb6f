# SPDX-License-Identifier: Apache-2.0
"""One choice of a request on its way: what was released, under which set, and the text made of it.

A choice is shared by two threads: the engine's thread computes tokens and changes the expert set, the event
loop releases tokens. Its ``generation`` decides between them: a token computed in an earlier generation was
computed with a set that is no longer permitted and is never released; the sequence is computed again from
the last released token.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cluster.hosting.messages import Segment, TokenLogprob, added_shares, joined_segments
from cluster.hosting.plan import NewSet
from cluster.office.protocol import UsageRecord
from model_core.engine.requests import Sampling, TokenEvent

_BROKEN = "\ufffd"
# Segments of single tokens are joined now and then: joining many at once costs hardly more than two.
_MOST_LOOSE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """What a token was computed under."""

    epoch: int
    composition_digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StepToken:
    """One computed token that waits for its release."""

    generation: int
    label: Label
    event: TokenEvent = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """A choice ends without a further token.

    Attributes:
        reason: ``withdrawn`` where nothing may answer any more, ``stopped`` where this request may not go on.
        cause: stable code (``cluster.hosting.endings``).
    """

    reason: Literal["withdrawn", "stopped"]
    cause: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A choice cannot go on."""

    error: Exception


@dataclass(kw_only=True, slots=True, eq=False)
class Choice:
    """One sequence as the host sees it.

    Attributes:
        name: the request id and the choice's number.
        index: the choice's number.
        deployment: whose composition it runs.
        consumer: tenant of the asker, part of the key of its states.
        prompt_ids: tokens of the prompt.
        sampling: how tokens are drawn; ``max_tokens`` counts from the prompt's end.
        notify: hands items to the event loop (thread-safe).
        mutex: guards ``generation`` and ``released_ids``.
        generation: grows whenever the set changes.
        run: grows whenever the sequence starts anew in the engine.
        released_ids: tokens that were released.
        computed: tokens computed in this generation, released or not, counted from the prompt's end.
        set: what it is computed with now.
        epoch: of the roster that gave the set.
        finished: the engine has ended the sequence.
    """

    name: str
    index: int
    deployment: str
    consumer: str
    prompt_ids: tuple[int, ...] = field(repr=False)
    sampling: Sampling
    notify: Callable[[Choice, StepToken | Ending | Failure], None]
    mutex: threading.Lock = field(default_factory=threading.Lock)
    generation: int = 0
    run: int = 0
    released_ids: list[int] = field(default_factory=list, repr=False)
    computed: int = 0
    set: NewSet | None = None
    epoch: int = -1
    finished: bool = False

    @property
    def engine_id(self) -> str:
        """The engine's name of the sequence: a sequence that starts again is another one."""
        return f"{self.name}#{self.run}"


class TextAssembler:
    """Turns token ids into text as they come: whole characters, and no stop text.

    Args:
        decode: token ids to text; must be a concatenation over tokens (byte-level).
        stops: texts that end the choice.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._decode = decode
        self._stops = [stop for stop in stops if stop]
        self._held_ids: list[int] = []
        self._passed = 0
        self._held_text = ""
        self.stopped = False

    def add(self, token_id: int) -> str:
        """The text that one more token sets free; sets ``stopped`` when a stop text is complete."""
        self._held_ids.append(token_id)
        text = self._decode(self._held_ids)
        # Bytes that may yet become a character decode to exactly one replacement character at the end;
        # everything before it can no longer change.
        stable = text.removesuffix(_BROKEN)
        new = stable[self._passed :]
        if stable == text:
            self._held_ids, self._passed = [], 0
        else:
            self._passed = len(stable)
        return self._pass(new)

    def flush(self) -> str:
        """What was held back, once no token follows."""
        text = self._decode(self._held_ids)[self._passed :] if self._held_ids else ""
        self._held_ids, self._passed = [], 0
        text = self._pass(text)
        held, self._held_text = self._held_text, ""
        return text + held

    def _pass(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held_text + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held_text = ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held_text = text[len(text) - keep :] if keep else ""
        return text[: len(text) - keep] if keep else text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that could begin ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


@dataclass(kw_only=True, slots=True)
class ChoiceAccount:
    """What was released of one choice: segments for the receipt, records for the journal."""

    request_id: str
    deployment: str
    index: int
    released: int = 0
    _segments: list[Segment] = field(default_factory=list)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What was released so far, by runs of one composition."""
        return joined_segments(self._segments)

    def take(
        self, tokens: Sequence[StepToken], names: Callable[[str], str], at_us: int
    ) -> tuple[list[UsageRecord], tuple[Segment, ...]]:
        """Counts tokens that are about to be released.

        Args:
            tokens: in order.
            names: bundle digest to the name shown in receipts.
            at_us: time of the record.

        Returns:
            One usage record and one segment per run of tokens with the same label.
        """
        records: list[UsageRecord] = []
        fresh: list[Segment] = []
        start = 0
        while start < len(tokens):
            label = tokens[start].label
            end = start + 1
            shares = tokens[start].event.attribution_ppm
            while end < len(tokens) and tokens[end].label == label:
                shares = added_shares(shares, tokens[end].event.attribution_ppm)
                end += 1
            records.append(
                UsageRecord(
                    request_id=self.request_id,
                    deployment=self.deployment,
                    epoch=label.epoch,
                    composition_digest=label.composition_digest,
                    prompt_tokens=0,
                    completion_tokens=end - start,
                    experts=dict(shares),
                    at_us=at_us,
                )
            )
            fresh.append(
                Segment(
                    index=self.index,
                    epoch=label.epoch,
                    composition_digest=label.composition_digest,
                    from_token=self.released,
                    to_token=self.released + end - start,
                    experts={names(digest): ppm for digest, ppm in shares.items()},
                )
            )
            self.released += end - start
            start = end
        self._segments += fresh
        if len(self._segments) > _MOST_LOOSE:
            self._segments = list(joined_segments(self._segments))
        return records, tuple(fresh)


def token_logprob(event: TokenEvent, decode: Callable[[Sequence[int]], str]) -> TokenLogprob:
    """A token's log-probabilities in the form of the protocol."""
    return TokenLogprob(
        token=decode([event.token_id]),
        token_id=event.token_id,
        logprob=event.logprob,
        top=tuple((decode([token_id]), token_id, logprob) for token_id, logprob in event.top_logprobs),
    )

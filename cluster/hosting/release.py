# SPDX-License-Identifier: Apache-2.0
"""The way out of a host: journaled first, released only through the gate, never from a void generation.

A ``Release`` belongs to one request and lives on the event loop. For every group of computed tokens it waits
until the gate is open, takes those that are still of the choice's present generation, writes their usage to
the journal, looks at the gate once more, and only then yields them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from cluster.hosting.choice import (
    Choice,
    ChoiceAccount,
    Ending,
    Failure,
    StepToken,
    TextAssembler,
    token_logprob,
)
from cluster.hosting.endings import ended
from cluster.hosting.errors import HostStopping, JournalDamaged, LeaseLost
from cluster.hosting.gate import ReleaseGate
from cluster.hosting.inbox import Inbox, Item
from cluster.hosting.journal import UsageJournal
from cluster.hosting.lease import wall_us
from cluster.hosting.messages import (
    Ended,
    FinishReason,
    GenerationAccount,
    GenerationChunk,
    GenerationRequest,
    PromptEcho,
    Segment,
)
from cluster.office.protocol import Admission, UsageRecord

_LOOK_S = 0.5
_GATE_PAUSE_S = 0.01


class Release:
    """Streams one request.

    Args:
        admission: the office's.
        request: what is generated.
        prompt_tokens: tokens of the prompt.
        journal: written before anything is yielded.
        gate: looked at before and after that.
        decode: token ids to text.
        names: (deployment, bundle digest) to the name shown in receipts.
        exact: whether no bit of the answer depends on what is computed beside it.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        request: GenerationRequest,
        prompt_tokens: int,
        journal: UsageJournal,
        gate: ReleaseGate,
        decode: Callable[[Sequence[int]], str],
        names: Callable[[str, str], str],
        exact: bool = False,
    ) -> None:
        self._exact = exact
        self._admission = admission
        self._request = request
        self._prompt_tokens = prompt_tokens
        self._journal = journal
        self._gate = gate
        self._decode = decode
        self._names = names
        self._known_names: dict[str, str] = {}
        self._inbox = Inbox()
        self._texts = [TextAssembler(decode, request.stop) for _ in range(request.n)]
        self._accounts = [
            ChoiceAccount(
                request_id=admission.request_id,
                deployment=admission.deployment,
                index=index,
                released=len(request.said(index)),
            )
            for index in range(request.n)
        ]
        self._scored: list[Segment] = []
        self._said = sum(account.released for account in self._accounts)
        for index, text in enumerate(self._texts):
            for token_id in request.said(index):
                text.add(token_id)  # shown already; what it holds back is still to come
        self._open = set(request.open_choices)
        self._first = True
        self._last_label = (admission.epoch, admission.composition_digest)
        self._prompt_recorded = False
        self._final_recorded = False
        self._ended: Ended | None = None

    def put(self, choice: Choice, item: Item) -> None:
        """Takes what the engine computed (event loop)."""
        self._inbox.put(choice, item)

    async def chunks(self, hold_s: float, leave: Callable[[Choice], None]) -> AsyncIterator[GenerationChunk]:
        """Chunks until every choice has ended.

        Args:
            hold_s: how long to wait for a lost lease.
            leave: tells the engine that a choice needs no more tokens.

        Raises:
            LeaseLost: the gate stayed closed for ``hold_s``.
        """
        while self._open:
            for choice, items in (await self._next_items(hold_s)).items():
                if choice.index not in self._open:
                    continue
                await self._gate_open(hold_s)
                generation = choice.generation
                chunk = self._take(choice, items)
                if chunk is None:
                    continue
                if chunk.token_ids and not self._gate.is_open():
                    await self._gate_open(hold_s)
                    if choice.generation != generation:
                        # Journaled and then forbidden before it could leave: it is charged, never shown.
                        chunk = self._withdrawn(choice)
                if chunk.finish_reason is not None:
                    leave(choice)
                yield chunk

    def prompt(self, echo: PromptEcho, scored: UsageRecord | None) -> list[GenerationChunk]:
        """The prompt, given back; journaled first where its tokens were computed.

        No await lies between the journal and the answer: look at the gate right before and right after.

        Args:
            echo: what is shown.
            scored: what the scored tokens cost; None where nothing was computed.
        """
        ends = not self._request.max_tokens
        if scored is not None:
            self._last_label = (scored.epoch, scored.composition_digest)
            self._scored.append(
                Segment(
                    part="prompt",
                    epoch=scored.epoch,
                    composition_digest=scored.composition_digest,
                    from_token=0,
                    to_token=scored.completion_tokens,
                    experts={self._name(digest): ppm for digest, ppm in scored.experts.items()},
                )
            )
        if scored is not None or ends:
            self._write([scored or self._bare_record(*self._last_label)], final=ends)
        first = GenerationChunk(
            prompt=echo, prompt_tokens=self._prompt_tokens, exact=self._exact, segments=tuple(self._scored)
        )
        self._first = False
        if not ends:
            return [first]
        indexes, self._open = sorted(self._open), set()
        closing = [GenerationChunk(index=index, finish_reason="length") for index in indexes]
        closing[-1] = closing[-1].model_copy(update={"marketplace": self._summary()})
        return [first, *closing]

    def close(self) -> None:
        """Writes the final record if none was written: the client left, or the request failed.

        It frees the rest of the reservation at once. Without a released token the prompt is not charged.
        """
        self._inbox.close()
        if not self._final_recorded:
            self._prompt_recorded = True
            # Why the request ended is what counts; whoever recovers the journal writes what is missing there.
            with contextlib.suppress(JournalDamaged):
                self._write([self._bare_record(*self._last_label)], final=True)

    def open(self) -> None:
        """Notes in the journal that the request has begun, so that its end is written even after a crash."""
        self._journal.open(self._bare_record(*self._last_label))

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    async def _next_items(self, hold_s: float) -> dict[Choice, list[Item]]:
        while not await self._inbox.wait(_LOOK_S):
            self._give_up_if_held(hold_s)
        return self._inbox.take()

    async def _gate_open(self, hold_s: float) -> None:
        while not self._gate.is_open():
            self._give_up_if_held(hold_s)
            await asyncio.sleep(_GATE_PAUSE_S)

    def _give_up_if_held(self, hold_s: float) -> None:
        if self._gate.sealed:
            raise HostStopping("The model host is ending; ask again in a few seconds.")
        if self._gate.closed_for_us() > hold_s * 1_000_000:
            raise LeaseLost(
                "The register has not answered this host for too long, so nothing more may be released; "
                "ask again in a few seconds.",
                retry_after_s=2,
            )

    def _take(self, choice: Choice, items: Sequence[Item]) -> GenerationChunk | None:
        """Claims what may be released and journals it; no await between the claim and the journal."""
        for item in items:
            if isinstance(item, Failure):
                raise item.error
        text_out = self._texts[choice.index]
        taken: list[StepToken] = []
        text = ""
        finish: FinishReason | None = None
        with choice.mutex:
            for item in items:
                if not isinstance(item, StepToken) or item.generation != choice.generation:
                    continue
                taken.append(item)
                choice.released_ids.append(item.event.token_id)
                text += text_out.add(item.event.token_id)
                finish = "stop" if text_out.stopped else item.event.finished
                if finish is not None:
                    break
        ending = next((item for item in items if isinstance(item, Ending)), None)
        if finish is None and ending is not None:
            finish, self._ended = ending.reason, ended(ending.cause)
        if finish is not None:
            text += text_out.flush()
            self._open.discard(choice.index)
        if not taken and finish is None:
            return None
        fresh = self._account(choice, taken, final=not self._open)
        return self._chunk(choice, taken, text, finish, fresh)

    def _account(self, choice: Choice, taken: Sequence[StepToken], *, final: bool) -> tuple[Segment, ...]:
        records, fresh = self._accounts[choice.index].take(taken, self._name, wall_us())
        if records:
            self._last_label = (records[-1].epoch, records[-1].composition_digest)
        elif final:
            records = [self._bare_record(*self._last_label)]
        self._write(records, final=final)
        return fresh

    def _write(self, records: list[UsageRecord], *, final: bool) -> None:
        if records and not self._prompt_recorded:
            records[0] = records[0].model_copy(update={"prompt_tokens": self._prompt_tokens})
        if final:
            records[-1] = records[-1].model_copy(update={"final": True})
        self._journal.append(records)
        self._prompt_recorded = self._prompt_recorded or bool(records)
        self._final_recorded = self._final_recorded or final

    def _bare_record(self, epoch: int, digest: str) -> UsageRecord:
        return UsageRecord(
            request_id=self._admission.request_id,
            deployment=self._admission.deployment,
            epoch=epoch,
            composition_digest=digest,
            prompt_tokens=0,
            completion_tokens=0,
            at_us=wall_us(),
        )

    def _chunk(
        self,
        choice: Choice,
        taken: Sequence[StepToken],
        text: str,
        finish: FinishReason | None,
        fresh: tuple[Segment, ...],
    ) -> GenerationChunk:
        wants_logprobs = self._request.logprobs is not None
        first, self._first = self._first, False
        return GenerationChunk(
            index=choice.index,
            token_ids=tuple(token.event.token_id for token in taken),
            text=text,
            logprobs=tuple(token_logprob(t.event, self._decode) for t in taken) if wants_logprobs else None,
            finish_reason=finish,
            marketplace=None if self._open else self._summary(),
            prompt_tokens=self._prompt_tokens if first else None,
            exact=self._exact if first else None,
            segments=fresh,
        )

    def _withdrawn(self, choice: Choice) -> GenerationChunk:
        self._open.discard(choice.index)
        self._ended = self._ended or ended("expert_withdrawn")
        return GenerationChunk(
            index=choice.index,
            finish_reason="withdrawn",
            marketplace=None if self._open else self._summary(),
        )

    def _summary(self) -> GenerationAccount:
        answers = [part for account in self._accounts for part in account.segments]
        segments: list[Segment] = [*self._scored, *answers]
        return GenerationAccount(
            request_id=self._admission.request_id,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=sum(account.released for account in self._accounts) - self._said,
            segments=tuple(segments),
            scored_tokens=sum(part.to_token for part in self._scored),
            exact=self._exact,
            ended=self._ended,
        )

    def _name(self, digest: str) -> str:
        # Kept: a name must not change in the middle of a receipt because its expert has left meanwhile.
        if digest not in self._known_names:
            self._known_names[digest] = self._names(self._admission.deployment, digest)
        return self._known_names[digest]

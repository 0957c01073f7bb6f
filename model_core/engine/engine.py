# SPDX-License-Identifier: Apache-2.0
"""The engine: many sequences, each with its own expert set and k, in one continuous batch.

``step`` computes one batch (next tokens of running sequences and chunks of waiting prompts) and returns the
new tokens, but nothing counts until ``commit``; ``discard`` forgets the step, and computing it again gives
the same tokens. Between the two the caller checks that it may still release them. Changes of expert sets
take effect from the next step: every state of the sequence is erased and its tokens so far are computed
again under the new set. Nothing here waits, starts threads, or knows about leases, text and tenants.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from model_core.engine.batch import Piece, StepResult, run_pieces
from model_core.engine.requests import SequenceRequest, TokenEvent
from model_core.engine.sampling import check_sampling
from model_core.engine.sequences import RunningSequence, token_events
from model_core.engine.states import SequenceStates
from model_core.errors import (
    EngineFull,
    RequestRefused,
    StepPending,
    UnknownRequest,
)
from model_core.network.bank import ExpertBank, StateKey
from model_core.network.mixture import Plan, plan_rows, plan_uniform


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pending:
    """A computed step that waits for its verdict."""

    work: list[tuple[RunningSequence, Piece]]
    result: StepResult
    events: list[TokenEvent]


@dataclass(slots=True)
class EngineCounts:
    """What the engine has done since it was made.

    Attributes:
        steps: committed steps.
        discarded: discarded steps.
        prefill_tokens: prompt positions computed in committed steps, recomputed ones included.
        new_tokens: tokens of committed steps.
        recomposed: sequences whose expert set changed.
    """

    steps: int = 0
    discarded: int = 0
    prefill_tokens: int = 0
    new_tokens: int = 0
    recomposed: int = 0


@dataclass(slots=True)
class _PlanCache:
    """The last batch's plan: in steady decoding the next batch has the same."""

    signature: tuple[object, ...] = ()
    plan: Plan | None = field(default=None)


class Engine:
    """Continuous batching over one bank.

    Args:
        bank: base and experts; only the engine's thread may change it while the engine runs.
        max_sequences: sequences that compute at the same time; as many again may wait.
        max_context: longest prompt plus new tokens; at most the base's positions.
        threads: compute threads of the process; None leaves them.
        prefill_tokens: prompt tokens per step at most, so that running sequences do not starve.

    Raises:
        RequestRefused: ``max_context`` is beyond the base's positions.
    """

    def __init__(
        self,
        bank: ExpertBank,
        *,
        max_sequences: int = 32,
        max_context: int = 512,
        threads: int | None = None,
        prefill_tokens: int = 512,
    ) -> None:
        if max_context > bank.shape.max_positions:
            raise RequestRefused(
                f"The base has {bank.shape.max_positions} positions; ask for a context of at most that.",
                max_positions=bank.shape.max_positions,
            )
        if threads is not None:
            torch.set_num_threads(threads)
        self.bank = bank
        self.max_sequences, self.max_context, self.prefill_tokens = max_sequences, max_context, prefill_tokens
        self.counts = EngineCounts()
        self._states = SequenceStates(
            bank.shape, max_sequences=max_sequences, max_context=max_context, dtype=bank.dtype
        )
        self._waiting: deque[RunningSequence] = deque()
        self._running: list[RunningSequence] = []  # in the order of their slots
        self._by_id: dict[str, RunningSequence] = {}
        self._pending: _Pending | None = None
        self._plans = _PlanCache()

    # ── what is inside ────────────────────────────────────────────────────────────────────────────────
    @property
    def idle(self) -> bool:
        """Whether no sequence is waiting or running."""
        return not self._by_id

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Requests that are waiting or running."""
        return tuple(self._by_id)

    def experts_of(self, request_id: str) -> tuple[str, ...]:
        """The current expert set of a sequence (digests, canonical order).

        Raises:
            UnknownRequest: no such sequence.
        """
        return self._find(request_id).experts

    # ── what goes in ──────────────────────────────────────────────────────────────────────────────────
    def submit(self, request: SequenceRequest) -> None:
        """Queues a sequence; it starts with the next step that has room.

        Raises:
            EngineFull: as many sequences wait as may run.
            RequestRefused: it can never run (length, ids, sampling, key, or a used request id).
            ExpertNotResident: one of its experts is not in the bank.
        """
        self._settled()
        if request.request_id in self._by_id:
            raise RequestRefused(
                "A sequence with this request id is already here.", request_id=request.request_id
            )
        self._check_prompt(request)
        check_sampling(request.sampling)
        experts = self._check_set(request.experts, request.top_k, request.state_key)
        if len(self._waiting) >= self.max_sequences:
            raise EngineFull("Too many sequences are waiting; try again later.", waiting=len(self._waiting))
        sequence = RunningSequence(
            request=request,
            experts=experts,
            top_k=request.top_k,
            key=request.state_key,
            tokens=list(request.prompt_ids),
        )
        self._by_id[request.request_id] = sequence
        self._waiting.append(sequence)

    def cancel(self, request_id: str) -> None:
        """Ends a sequence without a further token and erases its states.

        Raises:
            UnknownRequest: no such sequence.
            StepPending: a step waits for its verdict.
        """
        self._settled()
        sequence = self._find(request_id)
        if sequence.slot is None:
            self._waiting.remove(sequence)
            del self._by_id[request_id]
        else:
            self._release(sequence)

    def recompose(self, request_id: str, experts: Sequence[str], state_key: StateKey) -> None:
        """Changes the expert set of a sequence from the next step on.

        All its states are erased; prompt and tokens so far stay and are computed again under the new set.

        Raises:
            UnknownRequest: no such sequence.
            RequestRefused: the key does not describe the set.
            ExpertNotResident: an expert of the new set is not in the bank.
            StepPending: a step waits for its verdict.
        """
        self._settled()
        sequence = self._find(request_id)
        sequence.experts = self._check_set(tuple(experts), state_key.top_k, state_key)
        sequence.top_k, sequence.key = state_key.top_k, state_key
        if sequence.slot is not None:
            self._states.reset(sequence.slot, state_key)
        self.counts.recomposed += 1

    def drop_expert(self, digest: str, *, poison: bool) -> None:
        """Takes an expert away: filled with NaN and kept as a proof, or removed from the bank.

        Raises:
            RequestRefused: a sequence still uses it (``facts["request_ids"]``); recompose it first.
            ExpertNotResident: the bank does not hold it.
            StepPending: a step waits for its verdict.
        """
        self._settled()
        users = [name for name, sequence in self._by_id.items() if digest in sequence.experts]
        if users:
            raise RequestRefused(
                "Sequences still use this expert; recompose or cancel them first.", request_ids=users
            )
        if poison:
            self.bank.poison(digest)
        else:
            self.bank.remove(digest)

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────────
    def step(self) -> list[TokenEvent]:
        """Computes one batch. Call ``commit`` or ``discard`` before anything else.

        Returns:
            At most one new token per sequence; empty if nothing is running or only prompts were computed.

        Raises:
            StepPending: the last step waits for its verdict.
            StateKeyMismatch: a state of another expert set was about to be read.
            ExpertNotResident: an expert that a sequence uses has left the bank.
            TensorsNotFinite: logits of ``facts["request_ids"]`` are not finite; nothing was changed.
        """
        self._settled()
        self._admit()
        work = self._choose()
        if not work:
            return []
        pieces = [piece for _, piece in work]
        result = run_pieces(self.bank, self._states, pieces, self._plan(work))
        emitting = [
            (row, sequence)
            for row, (sequence, piece) in enumerate(work)
            if piece.start + len(piece.ids) == len(sequence.tokens)
        ]
        events = token_events(result, emitting, names=self.bank.names(), max_context=self.max_context)
        self._pending = _Pending(work=work, result=result, events=events)
        return events

    def commit(self) -> None:
        """Makes the last step count; finished sequences leave. Without a pending step it does nothing."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        sums_LBD = pending.result.sums_LBD
        for row, (_, piece) in enumerate(pending.work):
            self._states.advance(piece.slot, piece.start + len(piece.ids))
            if sums_LBD is not None:
                self._states.sums_LND[:, piece.slot] = sums_LBD[:, row]
            self.counts.prefill_tokens += len(piece.ids) if len(piece.ids) > 1 else 0
        self.counts.steps += 1
        self.counts.new_tokens += len(pending.events)
        for event in pending.events:
            sequence = self._by_id[event.request_id]
            sequence.tokens.append(event.token_id)
            sequence.n_new += 1
            if event.finished is not None:
                self._release(sequence)

    def discard(self) -> None:
        """Forgets the last step: every state is as before it, and it can be computed again."""
        if self._pending is not None:
            self._pending = None
            self.counts.discarded += 1

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _settled(self) -> None:
        if self._pending is not None:
            raise StepPending("The last step was neither committed nor discarded; do one of them first.")

    def _find(self, request_id: str) -> RunningSequence:
        sequence = self._by_id.get(request_id)
        if sequence is None:
            raise UnknownRequest("No running sequence has this request id.", request_id=request_id)
        return sequence

    def _check_set(self, experts: Sequence[str], top_k: int, key: StateKey) -> tuple[str, ...]:
        if top_k < 1:
            raise RequestRefused("At least one expert must compute each token; set top_k to 1 or more.")
        if key != self.bank.state_key(experts, top_k=top_k, consumer=key.consumer):
            raise RequestRefused("The state key does not describe this expert set, k and bank; make it anew.")
        return key.experts

    def _check_prompt(self, request: SequenceRequest) -> None:
        n_prompt, vocabulary = len(request.prompt_ids), self.bank.shape.vocab_size
        if not n_prompt or n_prompt >= self.max_context:
            raise RequestRefused(
                f"The prompt has {n_prompt} tokens; it needs at least 1 and fewer than {self.max_context}.",
                prompt_tokens=n_prompt,
                max_context=self.max_context,
            )
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= vocabulary:
            raise RequestRefused("The prompt holds token ids outside the vocabulary.", vocab_size=vocabulary)

    def _admit(self) -> None:
        while self._waiting and self._states.n_open < self.max_sequences:
            sequence = self._waiting.popleft()
            sequence.slot = self._states.open(sequence.key)
            self._running.append(sequence)

    def _choose(self) -> list[tuple[RunningSequence, Piece]]:
        """What the next batch computes: every sequence's next token, and prompt chunks within the budget."""
        singles, chunks, budget = [], [], self.prefill_tokens
        for slot, sequence in enumerate(self._running):
            start = self._states.claim(slot, sequence.key)
            missing = len(sequence.tokens) - start
            take = 1 if missing == 1 else min(missing, budget)
            if take == 0:
                continue
            piece = Piece(slot=slot, start=start, ids=sequence.tokens[start : start + take])
            if take == 1:
                singles.append((sequence, piece))
            else:
                chunks.append((sequence, piece))
            budget -= take if missing > 1 else 0
        return singles + chunks

    def _plan(self, work: Sequence[tuple[RunningSequence, Piece]]) -> Plan:
        names = self.bank.names()
        signature = (names, *((sequence.experts, sequence.top_k, len(piece.ids)) for sequence, piece in work))
        if self._plans.plan is None or self._plans.signature != signature:
            columns = {sequence.experts: self.bank.columns(sequence.experts) for sequence, _ in work}
            allowed = [
                (columns[sequence.experts], sequence.top_k) for sequence, piece in work for _ in piece.ids
            ]
            device = self.bank.decoder.embed.weight.device
            renormalise = self.bank.shape.renormalise
            if len(set(allowed)) == 1:
                plan = plan_uniform(*allowed[0], device, renormalise=renormalise)
            else:
                plan = plan_rows(allowed, device, renormalise=renormalise)
            self._plans = _PlanCache(signature=signature, plan=plan)
        assert self._plans.plan is not None  # noqa: S101  (set two lines above)
        return self._plans.plan

    def _release(self, sequence: RunningSequence) -> None:
        assert sequence.slot is not None  # noqa: S101  (only running sequences are released)
        moved = self._states.close(sequence.slot)
        last = self._running.pop()
        if moved != sequence.slot:
            last.slot = sequence.slot
            self._running[sequence.slot] = last
        del self._by_id[sequence.request.request_id]

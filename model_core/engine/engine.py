# SPDX-License-Identifier: Apache-2.0
"""The engine: many sequences, each with its own expert set and k, in one continuous batch.

``step`` computes one batch (next tokens of running sequences and chunks of waiting prompts) and returns the
new tokens, but nothing counts until ``commit``; ``discard`` forgets the step, and computing it again gives
the same tokens. Between the two the caller checks that it may still release them. Changes of expert sets
take effect from the next step: nothing that the sequence computed under the old set is read again, and its
tokens so far are computed again under the new set (or found, where somebody with the same key has computed
them). Nothing here waits, starts threads, or knows about leases, text and tenants.

What a step computes is chosen by ``schedule``, kept by ``tables`` and computed by a ``runner``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model_core.engine.checks import check_request, check_set
from model_core.engine.counts import EngineCounts
from model_core.engine.queue import FairQueue
from model_core.engine.requests import SequenceRequest, TokenEvent
from model_core.engine.runner import Runner, StepResult
from model_core.engine.schedule import Schedule, Work
from model_core.engine.sequences import RunningSequence, token_events
from model_core.engine.steady import SteadyRunner
from model_core.engine.tables import TableStore, scope_of
from model_core.engine.torch_runner import TorchRunner
from model_core.errors import RequestRefused, StepPending, UnknownRequest
from model_core.network.bank import CheckedExpert, ExpertBank, StateKey
from model_core.network.expert import Expert

PAGE_SIZE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pending:
    """A computed step that waits for its verdict."""

    work: Work
    result: StepResult
    events: list[TokenEvent]


class Engine:
    """Continuous batching over one bank.

    Args:
        bank: base and experts; only the engine's thread may change it while the engine runs.
        max_sequences: sequences that compute at the same time.
        max_context: longest prompt plus new tokens; at most the base's positions.
        threads: compute threads of the process; None leaves them.
        prefill_tokens: prompt tokens per step at most.
        prefill_beside: the same while other sequences wait for their next token, so that their gaps stay
            short.
        runner: computes the steps; None makes one that uses torch.
        deterministic: where no runner is given, make the slower one whose answers depend on nothing but
            their request, where torch's kernels allow it: see ``exact``.
        n_pages: pages of keys and values (of 16 positions) where no runner is given; None takes as many as
            ``max_sequences`` of full length need.
        prefix_reuse: whether full pages of earlier sequences are kept and found again under the same key.
        max_waiting: sequences that may wait; None lets as many wait as may run.
        max_waiting_per_tenant: of one consumer tenant; None sets no bound of its own.

    Raises:
        RequestRefused: ``max_context`` is beyond the base's positions, or the runner is too small for one
            sequence of that length or for ``max_sequences``.
    """

    def __init__(
        self,
        bank: ExpertBank,
        *,
        max_sequences: int = 32,
        max_context: int = 512,
        threads: int | None = None,
        prefill_tokens: int = 512,
        prefill_beside: int = 128,
        runner: Runner | None = None,
        deterministic: bool = False,
        n_pages: int | None = None,
        prefix_reuse: bool = True,
        max_waiting: int | None = None,
        max_waiting_per_tenant: int | None = None,
    ) -> None:
        if max_context > bank.shape.max_positions:
            raise RequestRefused(
                f"The base has {bank.shape.max_positions} positions; ask for a context of at most that.",
                max_positions=bank.shape.max_positions,
            )
        if threads is not None:
            torch.set_num_threads(threads)
        if runner is None:
            n_pages = max_sequences * -(-max_context // PAGE_SIZE) if n_pages is None else n_pages
            made = SteadyRunner if deterministic else TorchRunner
            runner = made(bank, n_pages=n_pages, n_tails=max_sequences, page_size=PAGE_SIZE)
        if runner.n_pages * runner.page_size < max_context or runner.n_tails < max_sequences:
            raise RequestRefused(
                "The engine's memory is too small for one sequence of full length, or has too few places; "
                "give it more pages or ask for a shorter context and fewer sequences.",
                positions=runner.n_pages * runner.page_size,
                places=runner.n_tails,
            )
        self.bank, self.runner = bank, runner
        self.max_sequences, self.max_context, self.prefill_tokens = max_sequences, max_context, prefill_tokens
        self._counts = EngineCounts()
        self._store = TableStore(runner, reuse=prefix_reuse)
        waiting = max_sequences if max_waiting is None else max_waiting
        self._schedule = Schedule(
            self._store,
            FairQueue(max_waiting=waiting, max_waiting_per_tenant=max_waiting_per_tenant),
            max_sequences=max_sequences,
            prefill_tokens=prefill_tokens,
            prefill_beside=prefill_beside,
        )
        self._by_id: dict[str, RunningSequence] = {}
        self._pending: _Pending | None = None
        self._again: Work | None = None  # of a discarded step, while nothing has changed since
        self._names = bank.names()
        self._usable = bank.digests
        self._bank_changes = bank.changes

    # ── what is inside ────────────────────────────────────────────────────────────────────────────────
    @property
    def idle(self) -> bool:
        """Whether no sequence is waiting or running."""
        return not self._by_id

    @property
    def exact(self) -> bool:
        """Whether no bit of an answer depends on its neighbours, on chunks, or on reused prefixes."""
        return self.runner.row_exact

    @property
    def counts(self) -> EngineCounts:
        """What the engine has done so far."""
        pages = self._store.counts
        self._counts.preempted = self._schedule.preempted
        self._counts.prefix_hits, self._counts.reused_tokens = pages.hits, pages.reused_tokens
        self._counts.evicted_pages, self._counts.dropped_pages = pages.evicted_pages, pages.dropped_pages
        return self._counts

    @property
    def n_waiting(self) -> int:
        """Sequences that have not begun."""
        return len(self._schedule.queue)

    @property
    def n_pages_used(self) -> int:
        """Pages that sequences hold; 0 when the engine is idle."""
        return self._store.n_used

    @property
    def n_pages_cached(self) -> int:
        """Full pages that can be found again."""
        return self._store.n_cached

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
            EngineFull: too many sequences wait.
            RequestRefused: it can never run (length, ids, sampling, key, or a used request id).
            ExpertNotResident: one of its experts is not in the bank.
        """
        self._settled()
        if request.request_id in self._by_id:
            raise RequestRefused(
                "A sequence with this request id is already here.", request_id=request.request_id
            )
        check_request(request, self.bank, max_context=self.max_context)
        experts = check_set(self.bank, request.experts, request.top_k, request.state_key)
        sequence = RunningSequence(
            request=request,
            experts=experts,
            top_k=request.top_k,
            scope=scope_of(request.state_key, shared=request.shares_prefixes),
            tokens=list(request.prompt_ids),
            columns=self.bank.columns(experts),
        )
        self._schedule.put(sequence)
        self._by_id[request.request_id] = sequence
        self._again = None

    def cancel(self, request_id: str) -> None:
        """Ends a sequence without a further token; nobody waits for what it held.

        Raises:
            UnknownRequest: no such sequence.
            StepPending: a step waits for its verdict.
        """
        self._settled()
        self._schedule.remove(self._find(request_id))
        del self._by_id[request_id]
        self._again = None

    def recompose(self, request_id: str, experts: Sequence[str], state_key: StateKey) -> None:
        """Changes the expert set of a sequence from the next step on.

        Prompt and tokens so far stay and are computed again under the new set; what was computed under the
        old one is not read again by it.

        Raises:
            UnknownRequest: no such sequence.
            RequestRefused: the key does not describe the set.
            ExpertNotResident: an expert of the new set is not in the bank.
            StepPending: a step waits for its verdict.
        """
        self._settled()
        sequence = self._find(request_id)
        sequence.experts = check_set(self.bank, tuple(experts), state_key.top_k, state_key)
        sequence.top_k = state_key.top_k
        sequence.scope = scope_of(state_key, shared=sequence.request.shares_prefixes)
        sequence.columns = self.bank.columns(sequence.experts)
        if sequence.table is not None:
            self._store.restart(sequence.table, sequence.scope)
        self._counts.recomposed += 1
        self._again = None

    def prepare_expert(self, digest: str, expert: Expert) -> CheckedExpert:
        """Checks an expert and derives what its first step needs; any thread may, while the engine steps.

        Raises:
            BundleWrongShape: it does not fit the base.
            TensorsNotFinite: NaN or infinity.
        """
        checked = self.bank.check(digest, expert)
        self.runner.prepare(digest, checked.expert)
        return checked

    def add_expert(self, checked: CheckedExpert) -> None:
        """Takes a prepared expert in between two steps; one that is usable here already stays as it is.

        Raises:
            StepPending: a step waits for its verdict.
        """
        self._settled()
        if checked.digest not in self.bank.digests:
            self.bank.install(checked)
            self._follow_bank()

    def drop_expert(self, digest: str, *, poison: bool) -> None:
        """Takes an expert away: filled with NaN and kept as a proof, or removed from the bank.

        Every prefix that was computed with it is forgotten and overwritten; no other is.

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
        self._follow_bank()

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
        self._follow_bank()
        work = self._again or self._schedule.choose()
        self._again = None
        if not work:
            return []
        result = self.runner.run([piece for _, piece in work])
        emitting = [
            (row, sequence)
            for row, (sequence, piece) in enumerate(work)
            if piece.start + len(piece.ids) == len(sequence.tokens)
        ]
        events = token_events(result, emitting, names=self._names, max_context=self.max_context)
        self._pending = _Pending(work=work, result=result, events=events)
        return events

    def commit(self) -> None:
        """Makes the last step count; finished sequences leave. Without a pending step it does nothing."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        self.runner.keep([(piece.tail, row) for row, (_, piece) in enumerate(pending.work)])
        counts = self._counts
        for sequence, piece in pending.work:
            end = piece.start + len(piece.ids)
            assert sequence.table is not None  # noqa: S101  (nothing leaves while a step is pending)
            self._store.advance(sequence.table, end, sequence.tokens)
            counts.prefill_tokens += len(piece.ids) if len(piece.ids) > 1 else 0
            counts.recomputed_tokens += max(0, min(end, sequence.reached) - piece.start)
            sequence.reached = max(sequence.reached, end)
        counts.steps += 1
        counts.new_tokens += len(pending.events)
        for event in pending.events:
            sequence = self._by_id[event.request_id]
            sequence.tokens.append(event.token_id)
            sequence.n_new += 1
            request = sequence.request
            self._schedule.queue.charge(request.state_key.consumer, 1, weight=request.weight)
            if event.finished is not None:
                self._schedule.remove(sequence)
                del self._by_id[event.request_id]

    def discard(self) -> None:
        """Forgets the last step: every state is as before it, and it can be computed again."""
        if self._pending is not None:
            self._again = self._pending.work
            self._pending = None
            self._counts.discarded += 1

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _settled(self) -> None:
        if self._pending is not None:
            raise StepPending("The last step was neither committed nor discarded; do one of them first.")

    def _find(self, request_id: str) -> RunningSequence:
        sequence = self._by_id.get(request_id)
        if sequence is None:
            raise UnknownRequest("No running sequence has this request id.", request_id=request_id)
        return sequence

    def _follow_bank(self) -> None:
        """Takes over what the bank holds now, and forgets prefixes of experts that have left it."""
        if self.bank.changes == self._bank_changes:
            return
        for sequence in self._by_id.values():
            sequence.columns = self.bank.columns(sequence.experts)
        usable = self.bank.digests
        for digest in set(self._usable) - set(usable):
            self._store.drop_expert(digest)
        self.runner.refresh()
        self._names, self._usable, self._bank_changes = self.bank.names(), usable, self.bank.changes
        self._again = None

# SPDX-License-Identifier: Apache-2.0
"""Which sequences run, and what the next step computes of each: places, pages and the prompt budget.

Sequences begin in the order of the queue and grow page by page. Pages of ended sequences that can still be
found are given back first; when those are used up, the sequence that began last steps back: it lets go of its
pages (most are found again while nobody needs them), waits in front of the queue, and is computed again.
So the sequence that began first always gets on, whatever the others hold, and since every sequence fits
alone, each of them ends. No request fails for lack of pages.

Two sequences that would compute the same page in one step do not: the later one waits for the earlier's page
and takes it over (several answers to one prompt begin like this). Knows no tensors, no experts, no draws.
"""

from __future__ import annotations

from bisect import insort

from model_core.engine.queue import FairQueue
from model_core.engine.runner import Piece
from model_core.engine.sequences import RunningSequence
from model_core.engine.tables import TableStore

Work = list[tuple[RunningSequence, Piece]]


def _age(sequence: RunningSequence) -> int:
    return -1 if sequence.age is None else sequence.age


class Schedule:
    """Waiting and running sequences.

    Args:
        store: their tables.
        queue: those that have not begun.
        max_sequences: that run at the same time.
        prefill_tokens: prompt positions per step at most.
        prefill_beside: the same while other sequences wait for their next token.
    """

    def __init__(
        self,
        store: TableStore,
        queue: FairQueue[RunningSequence],
        *,
        max_sequences: int,
        prefill_tokens: int,
        prefill_beside: int,
    ) -> None:
        self.queue = queue
        self.preempted = 0
        self._store = store
        self._max_sequences = max_sequences
        self._prefill_tokens, self._prefill_beside = prefill_tokens, min(prefill_tokens, prefill_beside)
        self._running: list[RunningSequence] = []  # who began first stands first
        self._stepped_back: list[RunningSequence] = []  # in the same order
        self._n_begun = 0

    @property
    def running(self) -> tuple[RunningSequence, ...]:
        """Sequences that have a table, in the order in which they began."""
        return tuple(self._running)

    def put(self, sequence: RunningSequence) -> None:
        """Queues a sequence.

        Raises:
            EngineFull: too many wait.
        """
        request = sequence.request
        self.queue.put(
            request.state_key.consumer, sequence, cost=len(request.prompt_ids), weight=request.weight
        )

    def remove(self, sequence: RunningSequence) -> None:
        """Takes a sequence out, wherever it stands, and overwrites what only it has computed."""
        if sequence.table is not None:
            self._running.remove(sequence)
            self._store.close(sequence.table)
            sequence.table = None
        elif sequence.age is not None:
            self._stepped_back.remove(sequence)
        else:
            self.queue.remove(sequence.request.state_key.consumer, sequence)

    def choose(self) -> Work:
        """What the next step computes: every sequence's next token, then prompts within the budget."""
        self._admit()
        singles: Work = []
        chunks: Work = []
        budget, computed = self._budget(), set()
        for sequence in tuple(self._running):
            table, tokens = sequence.table, sequence.tokens
            if table is None:  # stepped back for an earlier one
                continue
            self._store.claim(table, sequence.scope)
            self._store.extend(table, tokens)
            missing = len(tokens) - table.length
            take = 1 if missing == 1 else self._align(table.length, min(missing, budget), missing)
            page = self._store.next_page(table, tokens) if missing > 1 else None
            if not take or page in computed:
                continue
            end = self._make_room(sequence, table.length + take)
            if end <= table.length:
                continue
            if page is not None:
                computed.add(page)
            budget -= end - table.length if missing > 1 else 0
            piece = Piece(
                ids=tokens[table.length : end],
                start=table.length,
                pages=table.pages[: -(-end // self._store.page_size)],
                tail=table.tail,
                columns=sequence.columns,
                top_k=min(sequence.top_k, len(sequence.columns)),
            )
            (singles if len(piece.ids) == 1 else chunks).append((sequence, piece))
        return singles + chunks

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _budget(self) -> int:
        """Prompt positions of this step: fewer where a long step would be a gap in somebody's stream."""
        for sequence in self._running:
            if sequence.table is not None and len(sequence.tokens) == sequence.table.length + 1:
                return self._prefill_beside
        return self._prefill_tokens

    def _align(self, start: int, take: int, missing: int) -> int:
        """Lets a chunk that does not reach the prompt's end stop at the end of a page, if it gets there."""
        beyond = (start + take) % self._store.page_size
        return take - beyond if take < missing and take > beyond else take

    def _admit(self) -> None:
        while len(self._running) < self._max_sequences and self._store.n_tails_free:
            sequence = self._stepped_back[0] if self._stepped_back else self.queue.peek()
            if sequence is None:
                return
            if self._running and self._store.n_available < self._owed() + self._pages_for(sequence):
                return
            if sequence.age is None:
                self.queue.pop()
                sequence.age = self._n_begun
                self._n_begun += 1
            else:
                self._stepped_back.pop(0)
            sequence.table = self._store.open(sequence.scope)
            insort(self._running, sequence, key=_age)

    def _pages_for(self, sequence: RunningSequence) -> int:
        """Pages of a sequence's tokens and the next one."""
        return len(sequence.tokens) // self._store.page_size + 1

    def _owed(self) -> int:
        """Pages that running sequences still need for what they have to compute now."""
        needs = ((self._pages_for(sequence), sequence.table) for sequence in self._running)
        return sum(max(0, need - len(table.pages)) for need, table in needs if table is not None)

    def _make_room(self, sequence: RunningSequence, end: int) -> int:
        """Gets pages for positions below ``end``, from sequences that began later if need be.

        Returns:
            Below which position there is room; at most the present length if the sequence stepped back.
        """
        table = sequence.table
        assert table is not None  # noqa: S101  (only running sequences are given room)
        while True:
            room = min(self._store.grow(table, end), end)
            if room > table.length:
                return room
            last = self._running[-1]
            self._step_back(last)
            if last is sequence:
                return 0

    def _step_back(self, sequence: RunningSequence) -> None:
        assert sequence.table is not None  # noqa: S101  (only running sequences step back)
        self._running.remove(sequence)
        self._store.close(sequence.table)
        sequence.table = None
        insort(self._stepped_back, sequence, key=_age)
        self.preempted += 1

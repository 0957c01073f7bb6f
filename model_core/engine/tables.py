# SPDX-License-Identifier: Apache-2.0
"""What each sequence has computed: its page table, and the prefixes that sequences of one key share.

A table belongs to one key. It is read only after ``claim`` has compared that key with what its sequence is
now, and its full pages are found again under that key alone. The key is the state key (base, experts, their
routers, k, dtype, consumer tenant); where a request allows it, prefixes are shared between the tenants that
allow it too, and never with one that does not.

Pages that nobody holds any more are overwritten at once. Numbers of pages and tails are all that is known
here of what a runner keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from model_core.engine.pages import PagePool
from model_core.engine.prefixes import PrefixNode, PrefixTree
from model_core.engine.runner import Runner
from model_core.errors import StateKeyMismatch
from model_core.network.bank import StateKey


class Scope(NamedTuple):
    """Who may read a state.

    Attributes:
        key: everything that it depends on besides the tokens; without the consumer where it is shared.
        shared: whether consumer tenants that allowed it share it.
    """

    key: StateKey
    shared: bool


def scope_of(key: StateKey, *, shared: bool) -> Scope:
    """The scope of a sequence's states."""
    return Scope(replace(key, consumer="") if shared else key, shared)


@dataclass(slots=True, eq=False)
class Table:
    """The pages of one sequence.

    Attributes:
        scope: under which all of them were computed.
        tail: place of its prefix sums.
        pages: page numbers, in order; the last ones may be empty yet.
        nodes: places of its full pages in the tree of prefixes, in order.
        length: positions that count.
    """

    scope: Scope
    tail: int
    pages: list[int] = field(default_factory=list)
    nodes: list[PrefixNode[Scope]] = field(default_factory=list)
    length: int = 0


@dataclass(slots=True)
class StoreCounts:
    """What happened to pages.

    Attributes:
        hits: times that a sequence found pages it need not compute.
        reused_tokens: positions on them.
        evicted_pages: pages given back to make room.
        dropped_pages: pages forgotten because an expert left.
    """

    hits: int = 0
    reused_tokens: int = 0
    evicted_pages: int = 0
    dropped_pages: int = 0


class TableStore:
    """All tables over the pages of one runner.

    Args:
        runner: keeps what stands in the pages.
        reuse: whether full pages are kept and found again.
    """

    def __init__(self, runner: Runner, *, reuse: bool = True) -> None:
        self.counts = StoreCounts()
        self.page_size = runner.page_size
        self._runner = runner
        self._reuse = reuse
        self._pool = PagePool(runner.n_pages)
        self._tree: PrefixTree[Scope] = PrefixTree(self._pool)
        self._tails = list(range(runner.n_tails - 1, -1, -1))

    @property
    def n_available(self) -> int:
        """Pages that are free or can be made free without touching a sequence."""
        return self._pool.n_free + self._tree.n_idle

    @property
    def n_cached(self) -> int:
        """Pages that can be found again."""
        return self._tree.n_pages

    @property
    def n_used(self) -> int:
        """Pages that sequences hold; 0 when none is open."""
        return self._pool.n_pages - self.n_available

    @property
    def n_tails_free(self) -> int:
        """How many more tables can be opened."""
        return len(self._tails)

    def open(self, scope: Scope) -> Table:
        """An empty table; there must be a free tail."""
        table = Table(scope=scope, tail=self._tails.pop())
        self._runner.begin(table.tail, None)
        return table

    def claim(self, table: Table, scope: Scope) -> int:
        """Asks to read a table.

        Returns:
            How many positions count.

        Raises:
            StateKeyMismatch: it was computed under another key.
        """
        if table.scope != scope or (table.nodes and table.nodes[-1].key != scope):
            raise StateKeyMismatch(
                "A cached state was computed under another expert set; recompute the sequence.",
                tail=table.tail,
            )
        return table.length

    def extend(self, table: Table, tokens: Sequence[int]) -> None:
        """Takes over pages that hold what the table would compute next.

        Args:
            table: nothing happens unless it stands at the end of a page.
            tokens: of the sequence, all of them; the last one is never taken over.
        """
        size = self.page_size
        begun = table.length
        while table.length == len(table.nodes) * size and table.length + size < len(tokens):
            place = len(table.nodes)
            ids = tuple(tokens[table.length : table.length + size])
            node = self._tree.find(table.scope, table.nodes[-1] if place else None, ids)
            if node is None:
                break
            self._tree.use(node)
            self._put(table, place, node.page)
            table.nodes.append(node)
            table.length += size
        if table.length > begun:
            self._runner.begin(table.tail, table.pages[len(table.nodes) - 1])
            self.counts.hits += 1
            self.counts.reused_tokens += table.length - begun

    def next_page(self, table: Table, tokens: Sequence[int]) -> tuple[object, ...] | None:
        """What the page that the table computes next will be found by; None if it will not be full."""
        begin = len(table.nodes) * self.page_size
        if not self._reuse or begin + self.page_size >= len(tokens):
            return None
        above: object = table.nodes[-1] if table.nodes else table.scope
        return (above, tuple(tokens[begin : begin + self.page_size]))

    def grow(self, table: Table, end: int) -> int:
        """Makes room for positions below ``end``.

        Returns:
            Below which position there is room; less than ``end`` where pages have run out.
        """
        missing = -(-end // self.page_size) - len(table.pages)
        if missing > self._pool.n_free:
            freed = self._tree.evict(missing - self._pool.n_free)
            self.counts.evicted_pages += len(freed)
            self._runner.erase(freed)
        for _ in range(missing):
            page = self._pool.take()
            if page is None:
                return len(table.pages) * self.page_size
            table.pages.append(page)
        return end

    def advance(self, table: Table, length: int, tokens: Sequence[int]) -> None:
        """Makes positions below ``length`` count; full pages can be found from here on."""
        table.length = length
        size = self.page_size
        while self._reuse and (len(table.nodes) + 1) * size <= length:
            place = len(table.nodes)
            ids = tuple(tokens[place * size : (place + 1) * size])
            above = table.nodes[-1] if place else None
            node = self._tree.find(table.scope, above, ids)
            if node is None:
                node = self._tree.add(table.scope, above, ids, table.pages[place])
            else:  # computed twice at the same time: one copy is enough
                self._tree.use(node)
                self._put(table, place, node.page)
            table.nodes.append(node)

    def restart(self, table: Table, scope: Scope) -> None:
        """Empties a table and gives it another scope: nothing computed under the old one is read again."""
        self._empty(table)
        self._runner.begin(table.tail, None)
        table.scope = scope

    def close(self, table: Table) -> None:
        """Gives up a table; its full pages can still be found."""
        self._empty(table)
        self._tails.append(table.tail)

    def drop_expert(self, digest: str) -> None:
        """Forgets and overwrites every prefix whose key contains an expert, and no other.

        Raises:
            ValueError: a sequence still uses one of them; nothing was changed.
        """
        pages = self._tree.drop(lambda scope: digest in scope.key.experts)
        self.counts.dropped_pages += len(pages)
        self._runner.erase(pages)

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _put(self, table: Table, place: int, page: int) -> None:
        """Sets a page of a table to one that is held already, in the place of its own if it has one."""
        if place == len(table.pages):
            table.pages.append(page)
            return
        own, table.pages[place] = table.pages[place], page
        if self._pool.let_go(own):
            self._runner.erase([own])

    def _empty(self, table: Table) -> None:
        own = table.pages[len(table.nodes) :]
        for node in reversed(table.nodes):
            self._tree.release(node)
        for page in own:
            self._pool.let_go(page)
        self._runner.erase(own, [table.tail])
        table.pages, table.nodes, table.length = [], [], 0

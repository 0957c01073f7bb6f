# SPDX-License-Identifier: Apache-2.0
"""Which full pages hold which tokens, under which key: a tree per key, a page per node.

A node is found by its key, by the pages before it and by the token ids that its page holds; so a page is
found only by whoever has the same key and the same tokens from position 0 on. The tree holds each of its
pages once, sequences that use it hold it too. Whoever holds a page holds all pages before it, so pages that
only the tree holds can be given back from the leaves on, the least recently used first.

Keys are opaque here (the engine's are described in ``tables``), and so is what stands in a page.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from model_core.engine.pages import PagePool

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True, eq=False)
class PrefixNode(Generic[K]):
    """A full page in the tree.

    Attributes:
        key: of its tree.
        parent: node of the page before; None at a root, which has no page, and once it has left the tree.
        tokens: ids that the page holds.
        page: its number; -1 at a root.
        children: next pages by their token ids.
        stamp: when it was last used.
    """

    key: K
    parent: PrefixNode[K] | None
    tokens: tuple[int, ...]
    page: int
    children: dict[tuple[int, ...], PrefixNode[K]] = field(default_factory=dict)
    stamp: int = 0


class PrefixTree(Generic[K]):
    """Full pages by key and tokens.

    Args:
        pool: counts the holders of pages.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._roots: dict[K, PrefixNode[K]] = {}
        self._clock = itertools.count(1)
        self._n_nodes = 0
        self._n_idle = 0
        # (stamp, number of the entry, node): outdated entries are passed over when they come up.
        self._idle: list[tuple[int, int, PrefixNode[K]]] = []

    @property
    def n_pages(self) -> int:
        """Pages in the tree."""
        return self._n_nodes

    @property
    def n_idle(self) -> int:
        """Pages that only the tree holds: ``evict`` can give all of them back."""
        return self._n_idle

    @property
    def keys(self) -> tuple[K, ...]:
        """Keys under which pages stand."""
        return tuple(self._roots)

    def find(self, key: K, parent: PrefixNode[K] | None, tokens: tuple[int, ...]) -> PrefixNode[K] | None:
        """The page that holds these tokens after ``parent`` (None: at position 0). Does not hold it."""
        above = self._roots.get(key) if parent is None else parent
        return None if above is None else above.children.get(tokens)

    def use(self, node: PrefixNode[K]) -> None:
        """Holds a page for a sequence that holds all pages before it."""
        if self._pool.holders(node.page) == 1:
            self._n_idle -= 1
        self._pool.hold(node.page)
        node.stamp = next(self._clock)

    def add(self, key: K, parent: PrefixNode[K] | None, tokens: tuple[int, ...], page: int) -> PrefixNode[K]:
        """Puts a page that a sequence holds where ``find`` found none."""
        above = parent
        if above is None:
            above = self._roots.setdefault(key, PrefixNode(key=key, parent=None, tokens=(), page=-1))
        node = PrefixNode(key=key, parent=above, tokens=tokens, page=page, stamp=next(self._clock))
        above.children[tokens] = node
        self._pool.hold(page)
        self._n_nodes += 1
        return node

    def release(self, node: PrefixNode[K]) -> None:
        """Ends one sequence's hold. Pages after it are released first."""
        self._pool.let_go(node.page)
        node.stamp = next(self._clock)
        if self._pool.holders(node.page) == 1:
            self._n_idle += 1
            self._offer(node)

    def evict(self, count: int) -> list[int]:
        """Gives back up to ``count`` pages that only the tree holds, the least recently used first.

        Returns:
            Their numbers; they are free now, and still hold what they held.
        """
        pages: list[int] = []
        while len(pages) < count and self._idle:
            stamp, _, node = heapq.heappop(self._idle)
            if self._evictable(stamp, node):
                pages.append(node.page)
                self._remove(node)
        return pages

    def drop(self, match: Callable[[K], bool]) -> list[int]:
        """Forgets everything under the keys that match; no sequence may hold any of it.

        Returns:
            The pages' numbers; they are free now, and still hold what they held.

        Raises:
            ValueError: a sequence holds one of them; nothing was changed.
        """
        doomed = [key for key in self._roots if match(key)]
        nodes = [node for key in doomed for node in _below(self._roots[key])]
        if any(self._pool.holders(node.page) > 1 for node in nodes):
            raise ValueError("A sequence still uses a page under this key.")
        for node in nodes:
            node.parent = None
            self._pool.let_go(node.page)
        for key in doomed:
            del self._roots[key]
        self._n_nodes -= len(nodes)
        self._n_idle -= len(nodes)
        return [node.page for node in nodes]

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _evictable(self, stamp: int, node: PrefixNode[K]) -> bool:
        """Whether an entry of the heap still tells the truth."""
        idle = node.parent is not None and not node.children and stamp == node.stamp
        return idle and self._pool.holders(node.page) == 1

    def _offer(self, node: PrefixNode[K]) -> None:
        if self._evictable(node.stamp, node):
            heapq.heappush(self._idle, (node.stamp, next(self._clock), node))
        if len(self._idle) > 64 + 2 * self._n_nodes:
            self._idle = [entry for entry in self._idle if self._evictable(entry[0], entry[2])]
            heapq.heapify(self._idle)

    def _remove(self, node: PrefixNode[K]) -> None:
        parent = node.parent
        assert parent is not None  # noqa: S101  (only nodes of the tree are evictable)
        del parent.children[node.tokens]
        node.parent = None
        self._pool.let_go(node.page)
        self._n_nodes -= 1
        self._n_idle -= 1
        if parent.parent is not None:
            self._offer(parent)
        elif not parent.children:
            del self._roots[parent.key]


def _below(node: PrefixNode[K]) -> list[PrefixNode[K]]:
    """All nodes below one, itself left out."""
    found: list[PrefixNode[K]] = []
    stack = list(node.children.values())
    while stack:
        last = stack.pop()
        found.append(last)
        stack.extend(last.children.values())
    return found

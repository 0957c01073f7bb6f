# SPDX-License-Identifier: Apache-2.0
"""Pages and prefixes against a model of plain sets and lists: holders, matches, evictions and drops."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.engine.pages import PagePool
from model_core.engine.prefixes import PrefixNode, PrefixTree

Path = tuple[str, tuple[tuple[int, ...], ...]]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_a_tree_agrees_with_a_plain_list_of_paths(seed: int) -> None:  # noqa: PLR0912  (one per act)
    """Random readers come, extend, leave; pages are evicted and dropped: found is what a list would find."""
    pick = random.Random(seed)
    pool = PagePool(12)
    tree: PrefixTree[str] = PrefixTree(pool)
    known: dict[Path, int] = {}  # path -> page
    stamps: dict[Path, int] = {}
    readers: list[tuple[str, list[PrefixNode[str]], list[tuple[int, ...]]]] = []
    for clock in range(120):
        act = pick.random()
        if act < 0.5:  # a reader walks down as far as pages are known, and adds one page of its own
            key = pick.choice("xyz")
            words = [(pick.randint(0, 1),) for _ in range(pick.randint(1, 4))]
            nodes: list[PrefixNode[str]] = []
            for depth in range(len(words)):
                path = (key, tuple(words[: depth + 1]))
                node = tree.find(key, nodes[-1] if nodes else None, words[depth])
                assert (node is None) == (path not in known)
                if node is None:
                    break
                assert node.page == known[path]
                tree.use(node)
                nodes.append(node)
            depth = len(nodes)
            page = pool.take() if depth < len(words) else None
            if page is not None:
                node = tree.add(key, nodes[-1] if nodes else None, words[depth], page)
                nodes.append(node)
                known[key, tuple(words[: depth + 1])] = page
            readers.append((key, nodes, words))
        elif act < 0.8 and readers:
            key, nodes, words = readers.pop(pick.randrange(len(readers)))
            for depth, node in reversed(list(enumerate(nodes))):
                tree.release(node)
                stamps[key, tuple(words[: depth + 1])] = 10 * clock - depth
        elif act < 0.95:
            for page in tree.evict(1):
                path = next(path for path, number in known.items() if number == page)
                idle = [p for p in known if not _read(p, readers)]
                leaves = [p for p in idle if not any(q[0] == p[0] and q[1][:-1] == p[1] for q in known)]
                assert path in leaves
                assert stamps[path] == min(stamps[p] for p in leaves)
                del known[path]
        else:
            key = pick.choice("xyz")
            if any(reader[0] == key and reader[1] for reader in readers):
                with pytest.raises(ValueError, match="still uses"):
                    tree.drop(lambda other, key=key: other == key)
            else:
                gone = tree.drop(lambda other, key=key: other == key)
                assert sorted(gone) == sorted(page for path, page in known.items() if path[0] == key)
                known = {path: page for path, page in known.items() if path[0] != key}
        assert tree.n_pages == len(known)
        assert tree.n_idle == sum(1 for path in known if not _read(path, readers))
        assert pool.n_free == 12 - len(known)
        assert set(tree.keys) == {path[0] for path in known}
    for _, nodes, _ in readers:
        for node in reversed(nodes):
            tree.release(node)
    assert len(tree.evict(100)) == len(known)
    assert pool.n_free == 12
    assert not tree.keys


def _read(path: Path, readers: list[tuple[str, list[PrefixNode[str]], list[tuple[int, ...]]]]) -> bool:
    key, words = path
    depth = len(words)
    return any(
        other == key and len(nodes) >= depth and tuple(read[:depth]) == words
        for other, nodes, read in readers
    )


def test_a_hot_prefix_costs_no_memory() -> None:
    """A page that is used and released a thousand times leaves no more notes than a bounded number."""
    pool = PagePool(2)
    tree: PrefixTree[str] = PrefixTree(pool)
    page = pool.take()
    assert page is not None
    node = tree.add("x", None, (1,), page)
    tree.release(node)
    for _ in range(1000):
        tree.use(node)
        tree.release(node)
    assert len(tree._idle) <= 67
    assert tree.evict(2) == [page]


def test_a_free_page_is_neither_shared_nor_freed_again() -> None:
    """Holding or letting go of a free page is refused; every page is handed out once."""
    pool = PagePool(3)
    taken = [pool.take() for _ in range(4)]
    assert taken == [0, 1, 2, None]
    pool.hold(1)
    assert not pool.let_go(1)
    assert pool.let_go(1)
    with pytest.raises(ValueError, match="free already"):
        pool.let_go(1)
    with pytest.raises(ValueError, match="cannot be shared"):
        pool.hold(1)
    assert pool.take() == 1

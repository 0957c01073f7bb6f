# SPDX-License-Identifier: Apache-2.0
"""The tree over a set: its root follows from the set alone, and every entry can be proven."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from model_core.packing.canonical import verify_inclusion
from policy.facts import trie

ACTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=60)


def digest(value: int) -> bytes:
    """What an entry says."""
    return trie.leaf_digest(b"%d" % value)


@given(ACTS)
def test_any_history_ends_in_the_tree_of_its_set(acts: list[tuple[int, int]]) -> None:
    """Entries that came, changed and went in any order leave the tree that is grown from what stays."""
    tree, entries = None, dict[int, bytes]()
    for name, value in acts:
        key = trie.key_of(b"%d" % name)
        if value:
            tree = trie.put(tree, key, digest(value))
            entries[key] = digest(value)
        else:
            tree = trie.without(tree, key)
            entries.pop(key, None)
        grown = trie.grown(entries)
        assert (tree and tree.digest) == (grown and grown.digest)


@given(st.sets(st.integers(0, 1000), min_size=1, max_size=40), st.integers(0, 1000))
def test_every_entry_and_no_other_is_proven(names: set[int], other: int) -> None:
    """The proof of an entry holds under the root; there is none for what is not in the set."""
    tree = trie.grown({trie.key_of(b"%d" % name): trie.leaf_digest(b"leaf %d" % name) for name in names})
    assert tree is not None
    root = "sha256:" + tree.digest.hex()
    for name in names:
        steps = trie.steps_to(tree, trie.key_of(b"%d" % name))
        assert steps is not None
        assert verify_inclusion(root, b"leaf %d" % name, trie.as_inclusion(steps))
        assert not verify_inclusion(root, b"leaf %d" % (name + 1), trie.as_inclusion(steps))
    if other not in names:
        assert trie.steps_to(tree, trie.key_of(b"%d" % other)) is None


def test_taking_away_what_is_not_there_changes_nothing() -> None:
    """The very same tree comes back, shared and not copied."""
    tree = trie.grown({trie.key_of(b"%d" % name): digest(name) for name in range(9)})
    assert trie.without(tree, trie.key_of(b"none")) is tree
    assert trie.without(None, 1) is None


def test_one_entry_more_shares_the_rest() -> None:
    """A tree with one entry changed holds the subtrees of the other, except on one path."""
    before = trie.grown({trie.key_of(b"%d" % name): digest(name) for name in range(500)})
    after = trie.put(before, trie.key_of(b"7"), digest(8))

    def nodes(tree: trie.Node | None) -> set[int]:
        return set() if tree is None else {id(tree), *nodes(tree.left), *nodes(tree.right)}

    assert len(nodes(after) - nodes(before)) < 40

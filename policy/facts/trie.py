# SPDX-License-Identifier: Apache-2.0
"""A Merkle tree over a set whose shape depends on the set alone, so that one change costs one path.

The tree of RFC 6962 is over a list: an entry that comes or goes moves every one behind it, and the whole
right side is hashed again. Here each entry has a key of 256 bits (a digest of its name), and the tree is the
compressed binary trie of the keys: an inner node stands where the keys below it first differ. Leaves and
nodes are hashed as in RFC 6962 §2.1 (SHA-256, first byte 0 and 1). Nodes are never changed; a tree with one
entry more, less or otherwise shares all others. Knows nothing of what the entries are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from model_core.packing.canonical import InclusionProof

_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"


class Node:
    """A leaf (``bit`` -1) or an inner node.

    Attributes:
        digest: 32 bytes.
        key: of the leaf; of any leaf below an inner node.
        bit: the highest bit in which the keys below differ: 0 leads to the left.
        left: smaller keys.
        right: larger keys.
    """

    __slots__ = ("bit", "digest", "key", "left", "right")

    def __init__(
        self, digest: bytes, key: int, bit: int = -1, left: Node | None = None, right: Node | None = None
    ) -> None:
        self.digest = digest
        self.key = key
        self.bit = bit
        self.left = left
        self.right = right


def key_of(name: bytes) -> int:
    """The place of an entry, from what it is called."""
    return int.from_bytes(hashlib.sha256(name).digest(), "big")


def leaf_digest(leaf: bytes) -> bytes:
    """The digest of an entry."""
    return hashlib.sha256(_LEAF + leaf).digest()


def node_digest(left: bytes, right: bytes) -> bytes:
    """The digest of two subtrees."""
    return hashlib.sha256(_NODE + left + right).digest()


def grown(entries: dict[int, bytes]) -> Node | None:
    """The tree over entries: key to digest. None over none."""
    waiting: list[tuple[int, Node]] = []  # the right spine: nodes whose right side is still to come
    node: Node | None = None
    for key in sorted(entries):
        leaf = Node(entries[key], key)
        if node is not None:
            bit = (node.key ^ key).bit_length() - 1
            while waiting and waiting[-1][0] < bit:
                node = _joined(waiting[-1][0], waiting.pop()[1], node)
            waiting.append((bit, node))
        node = leaf
    while waiting and node is not None:
        node = _joined(waiting[-1][0], waiting.pop()[1], node)
    return node


def _joined(bit: int, left: Node, right: Node) -> Node:
    return Node(node_digest(left.digest, right.digest), left.key, bit, left, right)


def put(tree: Node | None, key: int, digest: bytes) -> Node:
    """The tree with an entry of this key, in place of one that is there."""
    if tree is None:
        return Node(digest, key)
    differs = (tree.key ^ key).bit_length() - 1
    if differs > tree.bit:  # a leaf of the same key differs nowhere: -1
        new = Node(digest, key)
        return _joined(differs, tree, new) if key >> differs & 1 else _joined(differs, new, tree)
    if tree.left is None or tree.right is None:
        return Node(digest, key)
    if key >> tree.bit & 1:
        return _joined(tree.bit, tree.left, put(tree.right, key, digest))
    return _joined(tree.bit, put(tree.left, key, digest), tree.right)


def without(tree: Node | None, key: int) -> Node | None:
    """The tree without the entry of this key; the same tree where there is none."""
    if tree is None or (tree.key ^ key).bit_length() - 1 > tree.bit:
        return tree
    if tree.left is None or tree.right is None:
        return None
    if key >> tree.bit & 1:
        right = without(tree.right, key)
        return tree if right is tree.right else _rest(tree, tree.left, right)
    left = without(tree.left, key)
    return tree if left is tree.left else _rest(tree, tree.right, left)


def _rest(tree: Node, stays: Node, other: Node | None) -> Node:
    if other is None:
        return stays
    left, right = (other, stays) if stays is tree.right else (stays, other)
    return _joined(tree.bit, left, right)


def steps_to(tree: Node | None, key: int) -> list[tuple[bytes, bool]] | None:
    """What proves that an entry belongs to the tree, from the leaf up; None where there is no such entry.

    Returns:
        for every node on the way the digest of the sibling, and whether that stands on the left.
    """
    if tree is None:
        return None
    steps: list[tuple[bytes, bool]] = []
    while tree.left is not None and tree.right is not None:
        turns = bool(key >> tree.bit & 1)
        sibling, tree = (tree.left, tree.right) if turns else (tree.right, tree.left)
        steps.append((sibling.digest, turns))
    return steps[::-1] if tree.key == key else None


def as_inclusion(steps: Sequence[tuple[bytes, bool]]) -> InclusionProof:
    """The steps as a proof that ``verify_inclusion`` understands.

    To it the entry stands in a full tree of the same depth, at the place that the turns spell.
    """
    index = sum(1 << depth for depth, (_, on_left) in enumerate(steps) if on_left)
    path = tuple("sha256:" + digest.hex() for digest, _ in steps)
    return InclusionProof(index=index, size=1 << len(steps), path=path)

# SPDX-License-Identifier: Apache-2.0
"""Merkle trees over hashes that are known already: roots, inclusion, consistency (RFC 6962, RFC 9162).

The leaves here are the 32 bytes of a leaf's hash, since that is what is stored; whoever verifies hashes the
leaf's bytes first. Knows nothing of what the leaves stand for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

_NODE = b"\x01"


class Root:
    """The root over leaves that come one by one, in memory that grows with their logarithm."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []  # roots of the complete subtrees, largest first

    def add(self, leaf: bytes) -> None:
        """Appends the hash of a leaf, 32 bytes."""
        node, size = leaf, self.size
        while size & 1:
            node = _hash(self._peaks.pop(), node)
            size >>= 1
        self._peaks.append(node)
        self.size += 1

    def digest(self) -> bytes:
        """The root over all leaves so far, 32 bytes; the empty tree has the digest of no bytes."""
        if not self._peaks:
            return hashlib.sha256(b"").digest()
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = _hash(peak, node)
        return node


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root over hashes of leaves, 32 bytes."""
    root = Root()
    for leaf in leaves:
        root.add(leaf)
    return root.digest()


class Levels:
    """A whole tree in memory, for many paths over the same leaves.

    Args:
        leaves: hashes, 32 bytes each.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = [list(leaves)]
        while len(level := self._levels[-1]) > 1:
            pairs = [_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
            self._levels.append([*pairs, level[-1]] if len(level) % 2 else pairs)

    def __len__(self) -> int:
        return len(self._levels[0])

    @property
    def root(self) -> bytes:
        """As of ``root_of``."""
        return self._levels[-1][0] if self._levels[0] else root_of(())

    def path(self, index: int) -> list[bytes]:
        """Siblings of a leaf from the bottom up.

        Raises:
            IndexError: there is no such leaf.
        """
        if not 0 <= index < len(self._levels[0]):
            raise IndexError(index)
        path = []
        for level in self._levels[:-1]:
            if (sibling := index ^ 1) < len(level):  # the last of an odd level moves up as it is
                path.append(level[sibling])
            index >>= 1
        return path


def root_from_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that a path leads to, or None where the path fits no such place (RFC 9162 §2.1.3.2)."""
    if not 0 <= index < size:
        return None
    place, last, node = index, size - 1, leaf
    for step in path:
        if last == 0:
            return None
        if place & 1 or place == last:
            node = _hash(step, node)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            node = _hash(node, step)
        place, last = place >> 1, last >> 1
    return node if last == 0 else None


def consistency_path(leaves: Sequence[bytes], earlier: int) -> list[bytes]:
    """What shows that the first ``earlier`` leaves are still the first ones (RFC 9162 §2.1.4.1).

    Raises:
        IndexError: not between 1 and the number of leaves.
    """
    if not 1 <= earlier <= len(leaves):
        raise IndexError(earlier)
    return _subproof(leaves, earlier, whole=True)


def is_consistent(earlier: int, size: int, earlier_root: bytes, root: bytes, path: Sequence[bytes]) -> bool:
    """Whether a path shows that one tree is the beginning of another (RFC 9162 §2.1.4.2).

    Args:
        earlier: leaves of the earlier tree.
        size: leaves of the later one.
        earlier_root: 32 bytes.
        root: of the later tree, 32 bytes.
        path: of ``consistency_path``.
    """
    if earlier == size:
        return not path and earlier_root == root
    if not 0 < earlier < size or not path:
        return False
    steps = list(path)
    if earlier & (earlier - 1) == 0:
        steps.insert(0, earlier_root)
    place, last = earlier - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    old = new = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            old, new = _hash(step, old), _hash(step, new)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            new = _hash(new, step)
        place, last = place >> 1, last >> 1
    return last == 0 and old == earlier_root and new == root


def _subproof(leaves: Sequence[bytes], earlier: int, *, whole: bool) -> list[bytes]:
    if earlier == len(leaves):
        return [] if whole else [root_of(leaves)]
    split = _split(len(leaves))
    if earlier <= split:
        return [*_subproof(leaves[:split], earlier, whole=whole), root_of(leaves[split:])]
    return [*_subproof(leaves[split:], earlier - split, whole=False), root_of(leaves[:split])]


def _split(size: int) -> int:
    """The largest power of two below a size."""
    return 1 << ((size - 1).bit_length() - 1)


def _hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()

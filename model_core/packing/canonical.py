# SPDX-License-Identifier: Apache-2.0
"""One form of bytes for every value, its digest, and trees of digests.

Two programs that hold the same value must compute the same digest, so documents are written in the JSON
Canonicalization Scheme (RFC 8785) and hashed with SHA-256. Sets of facts are hashed as the Merkle tree of
RFC 6962 §2.1, whose leaves and nodes are hashed with different first bytes: without them an inner node
could be passed off as a leaf. Knows nothing of what the documents mean.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import rfc8785

from model_core.errors import InvalidDigest, NotCanonical

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LEAF = b"\x00"
_NODE = b"\x01"
_CHUNK_BYTES = 1 << 20
_SAFE_INTEGER = 2**53 - 1


def canonical_bytes(value: object) -> bytes:
    """Writes a JSON value in its one canonical form (RFC 8785).

    Args:
        value: dicts with string keys, lists, tuples, strings, booleans, None, finite floats, and integers
            within ±(2**53 - 1), the range in which every JSON reader agrees.

    Raises:
        NotCanonical: the value has no such form.
    """
    try:
        if _is_plain(value):
            # The same bytes, an order of magnitude sooner: for such values the two forms agree.
            return _write_plain(value).encode()
        return bytes(rfc8785.dumps(value))
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeEncodeError, TypeError) as error:
        raise NotCanonical(
            "A value cannot be written as canonical JSON: use finite numbers, integers below 2**53, valid "
            "Unicode and string keys.",
            reason=type(error).__name__,
        ) from error


_write_plain = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False
).encode


def _is_plain(value: object) -> bool:
    """Whether a value holds no floats, no long integers and no keys whose order depends on their encoding."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return True
    if kind is int:
        return -_SAFE_INTEGER <= value <= _SAFE_INTEGER  # type: ignore[operator]
    if kind is dict:
        return all(
            type(key) is str and key.isascii() and _is_plain(one)
            for key, one in value.items()  # type: ignore[attr-defined]
        )
    if kind is list or kind is tuple:
        return all(map(_is_plain, value))  # type: ignore[call-overload]
    return False


def parse_canonical(data: bytes) -> Any:
    """Reads a JSON value and insists that the bytes are its canonical form.

    Insisting closes the gap between what was signed and what was understood: duplicate keys, other
    spellings of numbers and trailing bytes are all refused, since they would not be written again.

    Raises:
        NotCanonical: not JSON, or not in canonical form.
    """
    try:
        value = json.loads(data.decode("utf-8"), parse_int=_number, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise NotCanonical("The bytes are not valid JSON; write them with canonical_bytes.") from error
    if canonical_bytes(value) != data:
        raise NotCanonical("The bytes are JSON, but not in canonical form; write them with canonical_bytes.")
    return value


def _number(text: str) -> int | float:
    """A whole number as written; beyond 2**53 only a float can have been written with these digits."""
    exact = int(text) if len(text) <= 17 else _SAFE_INTEGER + 1
    return exact if -_SAFE_INTEGER <= exact <= _SAFE_INTEGER else float(text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def digest_bytes(data: bytes) -> str:
    """The digest of bytes, ``sha256:<64 hex digits>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_of(value: object) -> str:
    """The digest of a JSON value: of its canonical bytes.

    Raises:
        NotCanonical: the value has no canonical form.
    """
    return digest_bytes(canonical_bytes(value))


def digest_file(path: Path) -> str:
    """The digest of a file's bytes, read in pieces so that its size does not matter."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            state.update(piece)
    return "sha256:" + state.hexdigest()


def is_digest(value: object) -> bool:
    """Whether the value is a digest string."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def check_digest(value: str, what: str = "digest") -> str:
    """Returns the digest if it is one.

    Raises:
        InvalidDigest: it is not ``sha256:`` and 64 lower-case hex digits.
    """
    if not is_digest(value):
        raise InvalidDigest(f"The {what} is not of the form sha256: and 64 lower-case hex digits.", what=what)
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class InclusionProof:
    """What shows that a leaf stands at a place in a tree, without the other leaves (RFC 6962 §2.1.1).

    Attributes:
        index: the leaf's place, from 0.
        size: how many leaves the tree has.
        path: digests of the siblings, from the leaf up to the root.
    """

    index: int
    size: int
    path: tuple[str, ...]


def merkle_root(leaves: Sequence[bytes]) -> str:
    """The root digest over leaves in their given order; the empty tree has the digest of no bytes."""
    if not leaves:
        return digest_bytes(b"")
    level = [_leaf_hash(leaf) for leaf in leaves]
    while len(level) > 1:
        level = _parents(level)
    return "sha256:" + level[0].hex()


def prove_inclusion(leaves: Sequence[bytes], index: int) -> InclusionProof:
    """Makes the proof that ``leaves[index]`` belongs to the tree over ``leaves``.

    Raises:
        NotCanonical: there is no leaf at that index.
    """
    if not 0 <= index < len(leaves):
        raise NotCanonical("There is no leaf at that place of the tree.", index=index, size=len(leaves))
    level = [_leaf_hash(leaf) for leaf in leaves]
    path: list[str] = []
    place = index
    while len(level) > 1:
        sibling = place ^ 1
        if sibling < len(level):  # the last node of an odd level has none and moves up as it is
            path.append("sha256:" + level[sibling].hex())
        level = _parents(level)
        place >>= 1
    return InclusionProof(index=index, size=len(leaves), path=tuple(path))


def verify_inclusion(root: str, leaf: bytes, proof: InclusionProof) -> bool:
    """Whether the proof shows that ``leaf`` stands at its place below ``root`` (RFC 9162 §2.1.3.2)."""
    if not (is_digest(root) and all(is_digest(step) for step in proof.path)):
        return False
    if not 0 <= proof.index < proof.size:
        return False
    place, last = proof.index, proof.size - 1
    node = _leaf_hash(leaf)
    for step in proof.path:
        if last == 0:
            return False
        sibling = bytes.fromhex(step.removeprefix("sha256:"))
        if place & 1 or place == last:
            node = _node_hash(sibling, node)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            node = _node_hash(node, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and "sha256:" + node.hex() == root


def _leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(_LEAF + leaf).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


def _parents(level: list[bytes]) -> list[bytes]:
    """The level above: pairs hashed, an odd last node carried up (the same tree as RFC 6962's split)."""
    pairs = [_node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return [*pairs, level[-1]] if len(level) % 2 else pairs

# SPDX-License-Identifier: Apache-2.0
"""Canonical bytes, digests and Merkle trees."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from model_core import errors
from model_core.packing.canonical import (
    canonical_bytes,
    check_digest,
    digest_bytes,
    digest_file,
    digest_of,
    is_digest,
    merkle_root,
    parse_canonical,
    prove_inclusion,
    verify_inclusion,
)

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
_TEXT = st.text(st.characters(exclude_categories=()), max_size=6) | st.text(
    '\x00\x1f\x7f"\\/\b\n\u2028é', max_size=4
)
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT | st.integers(0, 3), inner, max_size=4),
)
_LEAVES = st.lists(st.binary(max_size=8), min_size=1, max_size=40)


@given(_VALUES)
def test_canonical_is_json_of_the_same_value(value: object) -> None:
    """Canonical bytes read back as the value they were made from, and parse_canonical accepts them."""
    data = canonical_bytes(value)
    assert json.loads(data, parse_int=float) == value
    assert parse_canonical(data) == value


@given(_ANYTHING)
def test_the_short_way_writes_the_standards_bytes(value: object) -> None:
    """What is written is what the standard's own implementation writes, and what it refuses is refused."""
    try:
        expected = bytes(rfc8785.dumps(value))
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        with pytest.raises(errors.NotCanonical):
            canonical_bytes(value)
    else:
        assert canonical_bytes(value) == expected


@given(st.dictionaries(st.text(), _SCALARS, min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_order_of_keys_does_not_matter(value: dict[str, object], chance: random.Random) -> None:
    """Two dicts with equal items have equal bytes, however they were filled."""
    items = list(value.items())
    chance.shuffle(items)
    assert canonical_bytes(dict(items)) == canonical_bytes(value)


@given(_VALUES, _VALUES)
def test_different_values_have_different_digests(left: object, right: object) -> None:
    """Digests are equal exactly where the JSON values are."""
    same = canonical_bytes(left) == canonical_bytes(right)
    assert (digest_of(left) == digest_of(right)) == same
    if json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True):
        assert same


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            {"numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 1e-27], "literals": [None, True, False]},
            b'{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27]}',
        ),
        ({"\u20ac": 1, "\r": 2, "1": 3, "\U0001f600": 4, "\ufb33": 5}, None),
        ([0.0, -0.0, 1.0, 1e21, 123456789012345.0], b"[0,0,1,1e+21,123456789012345]"),
    ],
)
def test_examples_of_the_standard(value: object, expected: bytes | None) -> None:
    """Numbers are written as RFC 8785 §3.2.2 says, and keys sort by UTF-16 units as in §3.2.3."""
    if expected is None:
        assert list(json.loads(canonical_bytes(value))) == ["\r", "1", "\u20ac", "\U0001f600", "\ufb33"]
    else:
        assert canonical_bytes(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        2**53,
        -(2**53),
        {1: 2},
        {"a": b"x"},
        "\ud800",
        {"\ud800": 1},
        object(),
        {1, 2},
    ],
)
def test_what_has_no_form(value: object) -> None:
    """Values that JSON readers would disagree on are refused with a typed error."""
    with pytest.raises(errors.NotCanonical):
        canonical_bytes(value)


def test_nesting_too_deep() -> None:
    """A value nested beyond the interpreter's stack is refused, not a crash."""
    with pytest.raises(errors.NotCanonical):
        parse_canonical(b"[" * 200_000 + b"]" * 200_000)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a":1} ',
        b'{"a": 1}',
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b"1.0",
        b"NaN",
        b"\xff",
        b"9" * 5000,
    ],
)
def test_other_spellings_are_refused(data: bytes) -> None:
    """Only the one canonical spelling is read; duplicate keys, spaces and NaN are not."""
    with pytest.raises(errors.NotCanonical):
        parse_canonical(data)


@given(st.binary(max_size=3000))
def test_digest_of_bytes(data: bytes) -> None:
    """A digest is SHA-256 with its name in front."""
    assert digest_bytes(data) == "sha256:" + hashlib.sha256(data).hexdigest()
    assert is_digest(digest_bytes(data))


def test_digest_of_a_file(tmp_path: Path) -> None:
    """A file larger than the reading piece has the digest of its bytes."""
    data = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(data)
    assert digest_file(tmp_path / "file") == digest_bytes(data)


@pytest.mark.parametrize(
    "value", ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "A" * 64, "md5:" + "0" * 64, None, 3]
)
def test_what_is_no_digest(value: str) -> None:
    """Anything else than sha256 and 64 lower-case hex digits is refused."""
    assert not is_digest(value)
    with pytest.raises(errors.InvalidDigest):
        check_digest(value)


def _rfc6962_root(leaves: Sequence[bytes]) -> bytes:
    """The recursive definition of RFC 6962 §2.1, as an oracle."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    left, right = _rfc6962_root(leaves[:split]), _rfc6962_root(leaves[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


@given(st.lists(st.binary(max_size=8), max_size=40))
def test_root_is_that_of_rfc6962(leaves: list[bytes]) -> None:
    """The bottom-up tree equals the recursive definition, for every size."""
    assert merkle_root(leaves) == "sha256:" + _rfc6962_root(leaves).hex()


@given(_LEAVES, st.data())
def test_every_leaf_can_be_proven(leaves: list[bytes], data: st.DataObject) -> None:
    """A made proof verifies."""
    index = data.draw(st.integers(0, len(leaves) - 1))
    assert verify_inclusion(merkle_root(leaves), leaves[index], prove_inclusion(leaves, index))


@given(_LEAVES, st.binary(max_size=8), st.data())
def test_no_other_leaf_can_be_proven(leaves: list[bytes], other: bytes, data: st.DataObject) -> None:
    """A proof verifies for no other leaf, root, place, size or path."""
    index = data.draw(st.integers(0, len(leaves) - 1))
    root, leaf, proof = merkle_root(leaves), leaves[index], prove_inclusion(leaves, index)
    assert verify_inclusion(root, other, proof) == (other == leaf)
    assert not verify_inclusion(digest_bytes(b"else"), leaf, proof)
    assert not verify_inclusion("no digest", leaf, proof)
    assert not verify_inclusion(root, leaf, replace(proof, path=(*proof.path, digest_bytes(b"more"))))
    assert not verify_inclusion(root, leaf, replace(proof, index=len(leaves)))
    assert not verify_inclusion(root, leaf, replace(proof, index=-1))
    assert not verify_inclusion(root, leaf, replace(proof, size=4 * len(leaves)))
    if proof.path:
        assert not verify_inclusion(root, leaf, replace(proof, path=proof.path[:-1]))
        assert not verify_inclusion(root, leaf, replace(proof, path=("no digest", *proof.path[1:])))


@given(_LEAVES, _LEAVES)
def test_different_sets_have_different_roots(left: list[bytes], right: list[bytes]) -> None:
    """Roots are equal exactly where the leaves and their order are."""
    assert (merkle_root(left) == merkle_root(right)) == (left == right)


def test_an_inner_node_is_no_leaf() -> None:
    """The two children of a node, offered as one leaf, do not give the node's hash."""
    leaves = [b"a", b"b"]
    inside = b"".join(hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves)
    assert merkle_root([inside]) != merkle_root(leaves)


def test_no_proof_beyond_the_leaves() -> None:
    """Asking for a leaf that is not there is refused."""
    with pytest.raises(errors.NotCanonical):
        prove_inclusion([b"a"], 1)

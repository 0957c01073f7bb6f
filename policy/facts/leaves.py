# SPDX-License-Identifier: Apache-2.0
"""The canonical bytes of a fact, written quickly: a snapshot holds a hundred thousand of them.

A fact holds text, truth values, whole numbers in the range of JSON, None, tuples of text and facts. For such
values the canonical form (RFC 8785) is what Pydantic's JSON encoder writes of a document with sorted keys.
``tests/policy/test_leaves.py`` holds it against the general writer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

from pydantic_core import PydanticSerializationError, to_json

from model_core.packing.canonical import canonical_bytes
from policy.facts.kinds import Fact


class _Form(NamedTuple):
    """How a class of facts is written; ``blank`` has its fields in order, and nothing in them."""

    blank: dict[str, Any]
    left_out: tuple[tuple[str, Any], ...]
    tuples: tuple[str, ...]


@cache
def _form(kind: type[Fact]) -> _Form:
    fields = kind.model_fields
    return _Form(
        blank=dict.fromkeys(sorted(fields)),
        left_out=tuple((name, field.exclude_if) for name, field in fields.items() if field.exclude_if),
        tuples=tuple(name for name, field in fields.items() if "tuple" in str(field.annotation)),
    )


def _plain(fact: Fact) -> dict[str, Any]:
    form = _form(type(fact))
    # A frozen fact has its fields in its __dict__ and nothing else; they take the places of the blank ones.
    document = form.blank | fact.__dict__
    for name, is_left_out in form.left_out:
        if is_left_out(document[name]):
            del document[name]
    for name in form.tuples:
        value = document.get(name)
        if value and isinstance(value[0], Fact):
            document[name] = [_plain(one) for one in value]
    return document


def fact_bytes(fact: Fact) -> bytes:
    """A fact's canonical bytes.

    Raises:
        NotCanonical: it holds text that is no Unicode.
    """
    try:
        return to_json(_plain(fact))
    except PydanticSerializationError:
        return canonical_bytes(fact.model_dump(mode="json"))


def leaf_bytes(kind: str, document: bytes) -> bytes:
    """What a Merkle tree holds of a fact: its kind and its canonical bytes."""
    return b'{"fact":%b,"kind":"%b"}' % (document, kind.encode())


def tree_entries(kind: str, named: Iterable[tuple[str, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Keys and digests of many facts of one kind, as ``policy.facts.trie`` has them of each by itself.

    Args:
        kind: of all of them.
        named: identity and canonical bytes of each.
    """
    sha256 = hashlib.sha256
    start, end = b'\x00{"fact":', b',"kind":"%b"}' % kind.encode()
    of_kind = leaf_name(kind, "")
    for identity, document in named:
        key = int.from_bytes(sha256(of_kind + identity.encode()).digest(), "big")
        yield key, sha256(start + document + end).digest()


def leaf_name(kind: str, identity: str) -> bytes:
    """What a fact is called in a tree, whatever it says."""
    return f"{kind}\0{identity}".encode()

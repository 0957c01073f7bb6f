# SPDX-License-Identifier: Apache-2.0
"""Ids and names."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_core.errors import InvalidName
from model_core.packing.ids import check_file_name, check_id, check_name, new_id

_HOSTILE = [
    "",
    "..",
    ".",
    "../etc",
    "a/b",
    "a\\b",
    "a.b",
    "A",
    "-a",
    "a\n",
    "a\x00",
    "é",
    "a" * 64,
    " a",
    "%2e",
]


def test_ids_are_unique_and_sort_by_time() -> None:
    """A thousand ids differ and come out in order."""
    made = [new_id("exp") for _ in range(1000)]
    assert len(set(made)) == 1000
    assert made == sorted(made)
    assert all(re.fullmatch(r"exp_[0-9a-f]{32}", one) for one in made)
    assert check_id(made[0], "exp") == made[0]


@pytest.mark.parametrize("prefix", ["", "Exp", "1", "a_b", "../x", "a" * 17])
def test_bad_prefix(prefix: str) -> None:
    """A prefix is a short word."""
    with pytest.raises(InvalidName):
        new_id(prefix)


@pytest.mark.parametrize("value", ["", "exp_", "job_" + "0" * 32, "exp_" + "G" * 32, "exp_" + "0" * 33, None])
def test_bad_id(value: str) -> None:
    """An id of another kind or shape is refused."""
    with pytest.raises(InvalidName):
        check_id(value, "exp")


@given(st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True))
def test_good_names_pass(name: str) -> None:
    """Every name of the alphabet is returned as it is."""
    assert check_name(name, "tenant") == name


@pytest.mark.parametrize("name", _HOSTILE)
def test_hostile_names(name: str) -> None:
    """Traversal, control characters, capitals and over-long names are refused, and the noun is said."""
    with pytest.raises(InvalidName, match="tenant") as caught:
        check_name(name, "tenant")
    assert len(caught.value.sentence) < 400


@given(st.text())
def test_a_checked_name_stays_in_its_folder(name: str) -> None:
    """Whatever passes holds no separator, dot or control character."""
    try:
        check_name(name, "thing")
    except InvalidName:
        return
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "..a", ".a", "a..b", "a/", "a\\b", "a.", "A.json"])
def test_hostile_file_names(name: str) -> None:
    """A file name is one plain component."""
    with pytest.raises(InvalidName):
        check_file_name(name, "file")


def test_good_file_names() -> None:
    """The names that bundles use pass."""
    for name in ("expert.safetensors", "metrics.jsonl", "privacy_report.json"):
        assert check_file_name(name, "file") == name

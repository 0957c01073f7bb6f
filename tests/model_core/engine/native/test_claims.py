# SPDX-License-Identifier: Apache-2.0
"""Derived files stay for as long as some living process of the machine needs them."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.engine.native.claims import Claims
from model_core.engine.native.derived import DerivedFolder
from tests.model_core.tensor_builders import digest, random_decoder, random_expert, tiny_shape

DIGESTS = tuple(digest(number) for number in range(4))
EXPERT = random_expert(random_decoder(tiny_shape(), 3), 1)


def make(folder: Path, *names: str) -> None:
    """Makes files for bundles."""
    for name in names:
        assert DerivedFolder(folder).expert(name, EXPERT).path is not None


def there(folder: Path) -> set[str]:
    """Bundles that have a file."""
    return {"sha256:" + path.name.split("-")[1] for path in folder.glob("*.weights")}


@settings(max_examples=30, deadline=None)
@given(said=st.lists(st.tuples(st.integers(0, 2), st.sets(st.sampled_from(DIGESTS))), max_size=6))
def test_a_file_stays_while_anybody_needs_it(
    said: list[tuple[int, set[str]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After every word exactly the files remain that some process named last."""
    folder = tmp_path_factory.mktemp("weights")
    hosts = [Claims(folder, f"srv_{number}") for number in range(3)]
    needs: dict[int, set[str]] = {}
    for number, digests in said:
        for name in DIGESTS:
            (folder / f"expert-{name.removeprefix('sha256:')}-v1-fp32.weights").touch()
        hosts[number].say(digests)
        needs[number] = digests
        assert there(folder) == set().union(*needs.values())
    for host in hosts:
        host.close()
    assert not list(folder.glob("*.claims"))


def test_a_process_that_was_killed_needs_nothing(tmp_path: Path) -> None:
    """Its word counts while it lives, and goes with it."""
    make(tmp_path, *DIGESTS[:2])
    code = (
        "import os, sys; from pathlib import Path; from model_core.engine.native.claims import Claims\n"
        "Claims(Path(sys.argv[1]), 'other').say(sys.argv[2:]); print('said', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), DIGESTS[0], DIGESTS[1]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"said\n"
    mine = Claims(tmp_path, "mine")
    mine.say([DIGESTS[0]])
    assert there(tmp_path) == set(DIGESTS[:2])
    other.kill()
    other.communicate()
    mine.say([DIGESTS[0]])
    assert there(tmp_path) == {DIGESTS[0]}
    mine.close()


def test_a_file_that_was_named_before_it_was_made_survives_every_clearing(tmp_path: Path) -> None:
    """One process names and makes bundles while three others clear away: none is lost in between."""
    others = [Claims(tmp_path, f"other_{number}") for number in range(3)]
    mine = Claims(tmp_path, "mine")

    def clear(claims: Claims) -> None:
        for _ in range(20):
            claims.say([DIGESTS[0]])

    with ThreadPoolExecutor(3) as threads:
        done = [threads.submit(clear, one) for one in others]
        for turn in range(20):
            name = DIGESTS[1 + turn % 3]
            mine.say([name])
            make(tmp_path, name)
            assert name in there(tmp_path)
        for one in done:
            one.result()
    for claims in (mine, *others):
        claims.close()


def test_half_a_word_clears_nothing_away(tmp_path: Path) -> None:
    """Where somebody's needs cannot be read, everything stays."""
    make(tmp_path, DIGESTS[0])
    other = Claims(tmp_path, "other")
    other.say([DIGESTS[0]])
    (tmp_path / "other.claims").write_text('["sha256:')
    mine = Claims(tmp_path, "mine")
    mine.say([])
    assert there(tmp_path) == {DIGESTS[0]}
    mine.close()
    other.close()


def test_abandoned_halves_of_files_go(tmp_path: Path) -> None:
    """What a killed process had begun to write is removed once nobody can be writing it any more."""
    old, new = tmp_path / "expert-a.partial", tmp_path / "expert-b.partial"
    for path in (old, new):
        path.touch()
    os.utime(old, (1, 1))
    claims = Claims(tmp_path, "mine")
    claims.say([])
    assert not old.exists()
    assert new.exists()
    claims.close()

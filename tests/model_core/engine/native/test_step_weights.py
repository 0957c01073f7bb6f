# SPDX-License-Identifier: Apache-2.0
"""The compiled step's memory and weights: what comes, goes, is shared, is erased, and is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from step_builders import Pages, finish, largest_difference, runner_of, same_bits
from tensor_builders import (
    bank_of,
    digest,
    prompt,
    random_decoder,
    random_expert,
    random_world,
    tiny_shape,
)

from model_core.engine.native.library import Library
from model_core.engine.runner import Piece


def test_an_expert_that_comes_back_under_its_name_is_packed_again(library: Library) -> None:
    """After poison and a second arrival the runner multiplies the new tensors."""
    decoder, experts = random_world(15, 1)
    bank = bank_of(decoder, experts)
    runner = runner_of(bank, library)
    (name,) = bank.digests
    bank.poison(name)
    runner.refresh()
    bank.add(name, random_expert(decoder, 99))
    runner.refresh()
    walk = Pages(runner, random.Random(1)).walk(bank, runner, prompt(2, 9), (name,), 2)
    assert largest_difference(bank, finish(runner, walk)) < 1e-4
    bank.remove(name)
    runner.refresh()
    with pytest.raises(KeyError):
        runner.addresses(name)


def test_runners_of_one_folder_map_one_copy_and_poison_their_own(library: Library, tmp_path: Path) -> None:
    """Equal bits with and without files; NaN in one runner is seen by no other, early or late."""
    decoder, experts = random_world(20, 2, kinds=("full", "int8"))
    banks = [bank_of(decoder, experts) for _ in range(4)]
    folder = tmp_path / "derived"
    runners = [
        runner_of(bank, library, folder=place)
        for bank, place in zip(banks[:3], (None, folder, folder), strict=True)
    ]
    for name in banks[1].digests:
        banks[1].poison(name)
    runners[1].refresh()
    runners.append(runner_of(banks[3], library, folder=folder))
    walks = [
        finish(r, Pages(r, random.Random(1)).walk(bank, r, prompt(2, 20), sorted(experts), 2))
        for bank, r in zip(banks, runners, strict=True)
        if bank is not banks[1]
    ]
    assert all(same_bits(walk, walks[0]) for walk in walks)


def test_steps_read_weights_in_large_pages_and_the_embedding_where_it_is(library: Library) -> None:
    """Base and expert above 2 MiB are moved and compute the same; of an embedding there is one copy."""
    decoder = random_decoder(tiny_shape(d_model=64, d_ffn=2048, tie_embeddings=False), 3)
    bank = bank_of(decoder, {digest(1): random_expert(decoder, 5)})
    runner = runner_of(bank, library)
    assert {address % (2 << 20) for address in runner.addresses(digest(1))} >= {0}
    assert runner._base.embedding_VD is not None
    assert runner._base.embedding_VD.data_ptr() == decoder.embed.weight.data_ptr()
    walk = Pages(runner, random.Random(1)).walk(bank, runner, prompt(2, 9), bank.digests, 2)
    assert largest_difference(bank, finish(runner, walk)) < 1e-4


def test_erased_pages_hold_nothing(library: Library) -> None:
    """Keys, values and sums of erased pages and places are zeros; others stay."""
    bank = bank_of(*random_world(16, 1))
    runner = runner_of(bank, library)
    pages = Pages(runner, random.Random(1))
    walk = finish(runner, pages.walk(bank, runner, prompt(2, 40), bank.digests, 2))
    runner.erase(walk.pages[:2], [walk.tail])
    for page in walk.pages[:2]:
        assert not runner._keys_values_PX[page].any()
        assert not runner._page_sums_PLD[page].any()
    assert not runner._tails_NLD[walk.tail].any()
    assert runner._keys_values_PX[walk.pages[2]].any()


def test_numbers_of_nothing_are_refused(library: Library) -> None:
    """A token, position, page, place or column that does not exist: an error instead of foreign memory."""
    bank = bank_of(*random_world(17, 1))
    runner = runner_of(bank, library)
    good: dict[str, Any] = {"ids": [1], "start": 0, "pages": [0], "tail": 0, "columns": (0, 1), "top_k": 2}
    bad: list[dict[str, Any]] = [
        {"ids": [61]},
        {"ids": [-1]},
        {"ids": []},
        {"start": 96, "pages": range(7)},
        {"start": 16},
        {"pages": [64]},
        {"tail": 8},
        {"columns": (0, 2)},
        {"columns": ()},
        {"top_k": 0},
    ]
    runner.run([Piece(**good)])
    for change in bad:
        with pytest.raises(ValueError, match="there is none of"):
            runner.run([Piece(**(good | change))])

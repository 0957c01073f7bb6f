# SPDX-License-Identifier: Apache-2.0
"""The compiled step: it computes what the modules compute, and each row as if it were alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from step_builders import Pages, Walk, advance, finish, largest_difference, runner_of, same_bits
from tensor_builders import (
    bank_of,
    digest,
    in_bfloat16,
    prompt,
    random_decoder,
    random_expert,
    random_world,
    tiny_shape,
)

from model_core.engine.native.library import Library
from model_core.network.bank import forward_logits
from model_core.packing.forms import ExpertKind

KINDS: tuple[ExpertKind, ...] = ("full", "narrow", "split", "low_rank", "int8")


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Families, heads, widths and heads of the output in every mixture, odd sizes among them."""
    family = draw(st.sampled_from(["olmo2", "llama", "olmoe"]))
    shape: dict[str, Any] = {
        "family": family,
        "n_kv_heads": draw(st.sampled_from([1, 2, 4])),
        "d_ffn": draw(st.sampled_from([16, 37, 40])),
        "renormalise": draw(st.booleans()),
        "tie_embeddings": draw(st.booleans()),
        "d_head": draw(st.sampled_from([None, 4, 10, 16, 68])),
    }
    if family == "olmoe":
        shape["clip_qkv"] = draw(st.sampled_from([None, 0.4]))
    return shape


@settings(max_examples=40, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 10_000), kinds=st.sampled_from([("full",), KINDS]))
def test_mixed_pieces_compute_what_the_modules_compute(
    library: Library, shape: dict[str, Any], seed: int, kinds: tuple[ExpertKind, ...]
) -> None:
    """Sets, k, cuts, repeated steps and scattered pages at random: logits within 1e-4 of whole passes."""
    pick = random.Random(seed)
    bank = bank_of(*random_world(seed, pick.randint(0, 5), kinds=kinds, **shape))
    runner = runner_of(bank, library, threads=pick.choice([1, 2]))
    pages = Pages(runner, pick)
    walks = []
    for index in range(pick.randint(1, 4)):
        experts = pick.sample(bank.digests, pick.randint(0, len(bank.digests)))
        ids = prompt(seed + index, pick.randint(1, 70))
        walks.append(pages.walk(bank, runner, ids, experts, pick.randint(1, len(experts) + 1)))
    while live := [walk for walk in walks if not walk.done]:
        live = pick.sample(live, pick.randint(1, len(live)))
        lengths = [pick.choice([1, pick.randint(1, 70)]) for _ in live]
        if pick.random() < 0.3:
            runner.run([walk.piece(length) for walk, length in zip(live, lengths, strict=True)])
        advance(runner, live, lengths)
    for walk in walks:
        assert largest_difference(bank, walk) < 1e-4
        assert all(float(shares.sum()) == pytest.approx(1.0) for shares in walk.shares.values())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(["float32", "bfloat16"]))
def test_no_bit_depends_on_neighbours_cuts_pages_or_threads(library: Library, seed: int, dtype: str) -> None:
    """A sequence alone in one piece, and cut up among others on other pages and threads: equal bits."""
    pick = random.Random(seed)
    decoder, experts = random_world(seed, 4, kinds=KINDS)
    if dtype == "bfloat16":
        for module in (decoder, *experts.values()):
            in_bfloat16(module)
    bank = bank_of(decoder, experts)
    chosen = pick.sample(bank.digests, pick.randint(0, 4))
    ids, k = prompt(seed, pick.randint(2, 70)), pick.randint(1, 5)
    alone = runner_of(bank, library)
    expected = finish(alone, Pages(alone, random.Random(0)).walk(bank, alone, ids, chosen, k))
    busy = runner_of(bank, library, threads=2)
    pages = Pages(busy, pick)
    walk = pages.walk(bank, busy, ids, chosen, k)
    others = [
        pages.walk(bank, busy, prompt(seed + i, 64), pick.sample(bank.digests, i), i + 1) for i in range(3)
    ]
    while not walk.done:
        live = [walk, *(other for other in others if not other.done)]
        pick.shuffle(live)
        advance(busy, live, [pick.choice([1, 2, 17, 40]) for _ in live])
    assert same_bits(walk, expected)


@pytest.mark.parametrize("cuts", [(), (7, 20), (1,) * 33])
def test_a_prefix_on_shared_pages_gives_the_bits_of_computing_it(
    library: Library, cuts: tuple[int, ...]
) -> None:
    """Two full pages of another sequence, however it was cut, and the sums at their end: 32 positions."""
    bank = bank_of(*random_world(3, 3))
    runner = runner_of(bank, library)
    pages = Pages(runner, random.Random(3))
    first = finish(runner, pages.walk(bank, runner, prompt(3, 50), bank.digests, 2), cuts)
    again = pages.walk(bank, runner, prompt(3, 50), bank.digests, 2)
    again.pages = [*first.pages[:2], *again.pages[2:]]
    again.at = 32
    runner.begin(again.tail, first.pages[1])
    assert same_bits(finish(runner, again, [3, 1]), first)


def test_of_equal_weights_the_earlier_column_is_taken(library: Library) -> None:
    """Two experts with one router row and different networks: the first one computes."""
    decoder = random_decoder(tiny_shape(), 4)
    experts = {digest(i): random_expert(decoder, i, gated=False, noise=0.3) for i in range(2)}
    one, other = (experts[name] for name in sorted(experts))
    for index in range(2):
        one.layer(index).router.bias = other.layer(index).router.bias = torch.zeros(())
        other.layer(index).router.row = one.layer(index).router.row
    bank = bank_of(decoder, experts)
    runner = runner_of(bank, library)
    walk = Pages(runner, random.Random(1)).walk(bank, runner, prompt(6, 30), bank.digests, 1)
    assert largest_difference(bank, finish(runner, walk, [1] * 29)) < 1e-4
    taken_E = torch.stack(list(walk.shares.values())).sum(0)
    assert (float(taken_E[1]) > 0, float(taken_E[2])) == (True, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_a_masked_and_a_poisoned_expert_are_the_same(library: Library, kind: ExpertKind) -> None:
    """Bit for bit, prefill and decode; none of the poisoned expert's matrices is multiplied."""
    decoder, experts = random_world(11, 4, kinds=(kind,))
    gone = sorted(experts)[1]
    whole, without = bank_of(decoder, experts), bank_of(decoder, experts)
    without.remove(gone)
    ids = prompt(5, 40)
    walks = []
    for bank, poisoned in ((without, False), (whole, False), (whole, True)):
        runner = runner_of(bank, library)
        if poisoned:
            bank.poison(gone)
            runner.refresh()
        runner.record(on=True)
        walk = Pages(runner, random.Random(1)).walk(bank, runner, ids, sorted(experts.keys() - {gone}), 3)
        walks.append(finish(runner, walk, [20, 1, 1, 5]))
        if bank is whole:
            column = bank.names().index(gone)
            assert int(runner.touched_E[column]) == 0
            assert not runner.addresses(gone) & {address for address, _ in runner.recorded()}
    expected = walks[0]
    for walk in walks[1:]:
        assert all(torch.equal(walk.logits[at], expected.logits[at]) for at in expected.logits)
        assert all(row.isfinite().all() for row in walk.logits.values())


def test_a_poisoned_expert_that_is_multiplied_all_the_same_shows(library: Library) -> None:
    """NaN reaches the logits through every kind: poison is a proof, not a flag."""
    for kind in KINDS:
        decoder, experts = random_world(12, 1, kinds=(kind,))
        bank = bank_of(decoder, experts)
        runner = runner_of(bank, library)
        walk = Pages(runner, random.Random(1)).walk(bank, runner, prompt(1, 5), bank.digests, 2)
        bank.poison(bank.digests[0])
        runner.refresh()
        assert finish(runner, walk).logits[4].isnan().all()


def test_a_step_that_is_not_kept_leaves_the_sums_as_they_were(library: Library) -> None:
    """Computed twice before it is kept: the same bits as computed once."""
    bank = bank_of(*random_world(13, 2))
    once, twice = runner_of(bank, library), runner_of(bank, library)
    walks = [Pages(r, random.Random(1)).walk(bank, r, prompt(2, 30), bank.digests, 2) for r in (once, twice)]
    finish(once, walks[0], [7, 9])
    for length in (7, 9, 30):
        twice.run([walks[1].piece(length)])
        advance(twice, [walks[1]], [length])
    assert same_bits(*walks)


def test_counters_and_records_tell_the_rows_that_were_multiplied(library: Library) -> None:
    """With k = n every column gets all rows in each layer, but only the last row in the last layer."""
    bank = bank_of(*random_world(14, 2))
    runner = runner_of(bank, library)
    runner.record(on=True)
    walk = Pages(runner, random.Random(1)).walk(bank, runner, prompt(2, 10), bank.digests, 3)
    finish(runner, walk)
    assert runner.touched_E.tolist() == [11, 11, 11]
    records = runner.recorded()
    for name in bank.names():
        own = runner.addresses(name)
        assert sorted(rows for address, rows in records if address in own) == [1, 1, 1, 10, 10, 10]


def test_bfloat16_stays_near_what_torch_computes_in_it(library: Library) -> None:
    """Weights, keys and values in bf16: no farther from fp32 than torch's own bf16 is, times two."""
    decoder, experts = random_world(18, 3, kinds=("full", "int8", "low_rank"))
    for module in (decoder, *experts.values()):
        in_bfloat16(module)
    half = bank_of(decoder, experts)
    ids = prompt(4, 40)
    torchs_VS = forward_logits(half, ids, half.digests, 2).float()
    runner = runner_of(half, library)
    walk = Pages(runner, random.Random(1)).walk(half, runner, ids, half.digests, 2)
    finish(runner, walk, [1] * 39)
    full_decoder = random_decoder(tiny_shape(), 18)
    full_decoder.load_state_dict({name: t.float() for name, t in decoder.state_dict().items()})
    wide = bank_of(full_decoder, {})
    for name, expert in experts.items():
        wide.add(name, expert.float() if expert.kind != "int8" else expert)
    exact_SV = forward_logits(wide, ids, wide.digests, 2)
    ours = torch.stack([(walk.logits[at] - exact_SV[at]).abs().mean() for at in range(40)])
    torchs = (torchs_VS - exact_SV).abs().mean(-1)
    assert float(ours.median()) <= 2 * float(torchs.median())


def test_walks_differ_where_their_tokens_do(library: Library) -> None:
    """The comparison above can fail: other tokens give other bits."""
    bank = bank_of(*random_world(19, 1))
    runner = runner_of(bank, library)
    pages = Pages(runner, random.Random(1))
    walks: list[Walk] = [
        finish(runner, pages.walk(bank, runner, prompt(seed, 9), bank.digests, 2)) for seed in (1, 2)
    ]
    assert not same_bits(*walks)

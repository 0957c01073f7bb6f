# SPDX-License-Identifier: Apache-2.0
"""Deterministic steps by torch: what is promised holds bit for bit; what does not hold is not promised."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_builders import bank_of, copy_of, drain, in_bfloat16, prompt, random_expert, random_world, request

from model_core.engine.engine import Engine
from model_core.engine.steady import BLOCK, SteadyRunner, attend_alone, in_blocks, keeps_bits
from model_core.packing.forms import EXPERT_KINDS


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), half=st.booleans())
def test_answers_depend_on_nothing_but_their_request(seed: int, half: bool) -> None:
    """Neighbours, chunks, page budgets and reused prefixes: the events of each request alone, every bit."""
    pick = random.Random(seed)
    kinds = ("full",) if half else EXPERT_KINDS[: pick.randint(1, len(EXPERT_KINDS))]
    decoder, experts = random_world(seed, 3, kinds=kinds, family=pick.choice(["olmo2", "llama"]))
    if half:
        for module in (decoder, *experts.values()):
            in_bfloat16(module)
    bank = bank_of(decoder, experts)
    asked = [
        request(
            bank,
            f"r{place}",
            prompt(pick.randint(0, 1), pick.randint(1, 40)),
            bank.digests[: pick.randint(0, 3)],
            pick.randint(1, 3),
            max_tokens=pick.randint(1, 6),
            temperature=pick.choice([0.0, 1.0]),
        )
        for place in range(4)
    ]
    runner = SteadyRunner(bank, n_pages=pick.randint(3, 9), n_tails=3)
    together = drain(
        Engine(
            bank,
            max_sequences=3,
            max_context=48,
            runner=runner,
            prefill_tokens=pick.randint(1, 40),
            max_waiting=4,
        ),
        asked,
    )
    alone = {}
    for one in asked:
        alone |= drain(
            Engine(bank, max_sequences=1, max_context=48, deterministic=True, prefix_reuse=False), [one]
        )
    # On a machine whose kernels do not keep the bits the promise is not made.
    assert not runner.row_exact or together == alone


def test_the_check_refuses_rows_that_lean_on_their_place_or_their_neighbours() -> None:
    """A plain row function passes; one that sees its place, a neighbour or the block's size does not."""
    rows = torch.randn(BLOCK, 8)
    assert keeps_bits(lambda x: x * 2, rows)
    assert not keeps_bits(lambda x: x + torch.arange(BLOCK)[:, None] * 1e-6, rows)
    assert not keeps_bits(lambda x: x + 1e-6 * x.roll(1, 0), rows)
    assert not keeps_bits(lambda x: x + 1e-7 * x.abs().max(), rows)
    sizes = []
    (doubled,) = in_blocks(lambda x: (sizes.append(len(x)) or 2 * x,), [torch.arange(37.0)[:, None]])
    assert sizes == [BLOCK] * 3
    assert torch.equal(doubled, 2 * torch.arange(37.0)[:, None])


def test_an_expert_that_breaks_the_promise_takes_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact until an expert comes whose rows lean on each other; the engine says so from then on."""
    decoder, experts = random_world(31, 2)
    bank = bank_of(decoder, experts)
    engine = Engine(bank, max_sequences=1, max_context=32, deterministic=True)
    if not engine.exact:
        pytest.skip("torch's kernels do not keep the bits of rows on this machine")
    good = random_expert(decoder, 5)
    engine.add_expert(engine.prepare_expert("sha256:" + "1" * 64, copy_of(good)))
    assert engine.exact
    bad = copy_of(good)
    down = bad.layer(1).ffn.down
    monkeypatch.setattr(down, "forward", lambda x: x @ down.weight.T + 1e-6 * x.sum())
    engine.add_expert(engine.prepare_expert("sha256:" + "2" * 64, bad))
    assert not engine.exact
    assert not Engine(bank, max_sequences=1, max_context=32).exact


def test_attention_written_out_is_attention() -> None:
    """Grouped queries over keys up to each row's position, against torch's own."""
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(BLOCK, 2, 3, 8, generator=generator)
    k, v = (torch.randn(BLOCK, 64, 2, 8, generator=generator) for _ in range(2))
    positions = torch.randint(0, 64, (BLOCK, 1), generator=generator)
    mask = (torch.arange(64) <= positions)[:, None, None, :].expand(-1, 2, 3, -1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
    )
    assert torch.allclose(attend_alone(q, k, v, positions), expected, atol=1e-5)

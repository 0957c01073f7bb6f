# SPDX-License-Identifier: Apache-2.0
"""Law 3: the merged model restricted to the public expert and one owner's equals that owner's own model."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_builders import bank_of, drain, prompt, random_world, request
from tensor_worlds import World, worlds

from model_core.engine.engine import Engine
from model_core.network.bank import forward_logits


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), n_experts=st.integers(1, 6), length=st.integers(1, 30), data=st.data())
def test_each_owners_slice_of_the_merged_model_is_the_owners_model(
    seed: int, n_experts: int, length: int, data: st.DataObject
) -> None:
    """Bit for bit, for every owner: what was trained as a pair is what the marketplace serves as a pair."""
    decoder, experts = random_world(seed, n_experts)
    merged = bank_of(decoder, experts)
    owner = data.draw(st.sampled_from(sorted(experts)), label="owner")
    ids = prompt(seed, length)
    with torch.inference_mode():
        for top_k in (1, 2):
            alone = decoder(torch.tensor([ids]), [experts[owner]], top_k=top_k)[0]
            assert torch.equal(forward_logits(merged, ids, [owner], top_k), alone)


@settings(max_examples=15, deadline=None)
@given(world=worlds(), length=st.integers(1, 30), prefill=st.integers(1, 16), data=st.data())
def test_the_slice_is_the_owners_model_on_every_path(
    world: World, length: int, prefill: int, data: st.DataObject
) -> None:
    """Any family, shape and kinds: whole sequences, and prefill, chunks and decoding in the engine."""
    merged = bank_of(world.decoder, world.experts)
    owner = data.draw(st.sampled_from(world.names), label="owner")
    own = bank_of(world.decoder, {owner: world.experts[owner]})
    ids = prompt(world.seed, length)
    for top_k in (1, 2):
        with torch.inference_mode():
            alone = world.decoder(torch.tensor([ids]), [world.experts[owner]], top_k=top_k)[0]
            assert torch.equal(forward_logits(merged, ids, [owner], top_k), alone)
        answers = [
            drain(
                Engine(bank, max_sequences=1, max_context=48, prefill_tokens=prefill),
                [request(bank, "r", ids, [owner], top_k, max_tokens=4)],
            )
            for bank in (merged, own)
        ]
        assert answers[0] == answers[1]

# SPDX-License-Identifier: Apache-2.0
"""The families of one decoder: where they norm and round, and the laws in those that norm before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tensor_builders import (
    bank_of,
    drain,
    prompt,
    random_decoder,
    random_world,
    request,
    tiny_shape,
    tokens,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.olmoe.modeling_olmoe import OlmoeRMSNorm

from model_core.engine.engine import Engine
from model_core.network.bank import forward_logits
from model_core.network.decoder import upcycle
from model_core.network.norm import norm_of

BEFORE = ["llama", "olmoe"]


@pytest.mark.parametrize(
    ("family", "theirs"), [("olmo2", Olmo2RMSNorm), ("llama", LlamaRMSNorm), ("olmoe", OlmoeRMSNorm)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_round_where_the_reference_rounds(family: Any, theirs: type, dtype: Any) -> None:
    """Bit for bit in every dtype: OLMo-2 multiplies in fp32 and then casts, Llama and OLMoE cast first."""
    ours, reference = norm_of(tiny_shape(family=family), 24), theirs(24, 1e-6)
    x_TD = (3 * torch.randn(50, 24)).to(dtype)
    with torch.no_grad():
        ours.weight.normal_(1.0, 0.3)
        reference.weight.copy_(ours.weight)
        assert torch.equal(ours.to(dtype)(x_TD), reference.to(dtype)(x_TD))


@settings(max_examples=15, deadline=None)
@given(family=st.sampled_from(BEFORE), seed=st.integers(0, 1000), n_copies=st.integers(1, 5), data=st.data())
def test_upcycling_is_neutral_where_weights_are_renormalised(
    family: Any, seed: int, n_copies: int, data: st.DataObject
) -> None:
    """With the shape's own renormalising any k of n copies of the public network is the dense base."""
    top_k = data.draw(st.integers(1, n_copies + 1), label="k")
    decoder = random_decoder(tiny_shape(family=family, renormalise=True), seed)
    experts = [upcycle(decoder) for _ in range(n_copies)]
    ids = torch.tensor([prompt(seed, 12)])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for expert in experts:
            for layer in range(decoder.shape.n_layers):
                expert.layer(layer).router.row.normal_(generator=generator)
        dense, mixed = decoder(ids), decoder(ids, experts, top_k=top_k)
    assert (dense - mixed).abs().max() <= 1e-5 * max(1.0, float(dense.abs().max()))


@pytest.mark.parametrize("family", BEFORE)
def test_without_renormalising_fewer_than_all_copies_weaken_the_base(family: Any) -> None:
    """That is why an import of a dense Llama model sets it: no norm stands behind the mixture."""
    decoder = random_decoder(tiny_shape(family=family), seed=1)
    ids = torch.tensor([prompt(1, 12)])
    with torch.no_grad():
        mixed = decoder(ids, [upcycle(decoder)], top_k=1)
        assert (decoder(ids) - mixed).abs().max() > 0.1


@pytest.mark.parametrize("family", BEFORE)
@pytest.mark.parametrize("renormalise", [False, True])
def test_the_engine_computes_what_whole_sequences_compute(family: Any, renormalise: bool) -> None:
    """In chunks, from the cache, in mixed batches, with gates: the tokens of the uncached model."""
    decoder, experts = random_world(
        4, 3, family=family, renormalise=renormalise, clip_qkv=0.7 if family == "olmoe" else None, d_head=8
    )
    bank = bank_of(decoder, experts)
    names = sorted(experts)
    sets = [names, names[:1], [], names[1:]]
    engine = Engine(bank, max_sequences=4, max_context=64, prefill_tokens=7)
    requests = [
        request(bank, str(row), prompt(row, 9 + row), chosen, 2, max_tokens=5)
        for row, chosen in enumerate(sets)
    ]
    events = drain(engine, requests)
    for row, chosen in enumerate(sets):
        context = list(prompt(row, 9 + row))
        for event in events[str(row)]:
            logits_V = forward_logits(bank, context, chosen, 2)[-1]
            assert int(logits_V.argmax()) == event.token_id
            assert event.logprob == pytest.approx(float(logits_V.log_softmax(-1).max()), abs=1e-4)
            context.append(event.token_id)
        assert len(tokens(events[str(row)])) == 5


@settings(max_examples=12, deadline=None)
@given(
    family=st.sampled_from(BEFORE),
    renormalise=st.booleans(),
    seed=st.integers(0, 1000),
    top_k=st.integers(1, 5),
)
def test_removal_is_exact_in_every_family(family: Any, renormalise: bool, seed: int, top_k: int) -> None:
    """A poisoned expert that is masked leaves the bits of a bank that never held it."""
    decoder, experts = random_world(seed, 4, family=family, renormalise=renormalise)
    names = sorted(experts)
    gone = names.pop(seed % 4)
    whole = bank_of(decoder, experts)
    whole.poison(gone)
    fresh = bank_of(decoder, {name: experts[name] for name in names})
    ids = prompt(seed, 14)
    assert torch.equal(forward_logits(whole, ids, names, top_k), forward_logits(fresh, ids, names, top_k))


@pytest.mark.parametrize("family", ["olmo2", *BEFORE])
def test_observers_see_what_the_router_reads(family: Any) -> None:
    """What is observed in a layer, times its rows, is the layer's router logits."""
    decoder, experts = random_world(2, 2, family=family)
    others = [experts[name] for name in sorted(experts)]
    for expert in others:
        for layer in range(decoder.shape.n_layers):
            expert.layer(layer).gate = None
            expert.layer(layer).router.get_buffer("bias").zero_()

    def watch(layer: int, inner_BSD: torch.Tensor, routing: Any) -> None:
        rows = [decoder.layer(layer).router.row, *(expert.layer(layer).router.row for expert in others)]
        logits_TE = inner_BSD.flatten(0, 1) @ torch.stack(rows).T
        assert torch.allclose(logits_TE, routing.logits[0], atol=1e-4)

    with torch.no_grad():
        decoder(torch.tensor([prompt(2, 9)]), others, observe=watch)


@pytest.mark.parametrize(
    "changes", [{"d_head": 6}, {"d_head": 5}, {"clip_qkv": 8.0}, {"family": "gpt"}, {"d_model": 25}]
)
def test_impossible_shapes_are_refused(changes: dict[str, Any]) -> None:
    """One spelling per shape: a head width that follows from the others is left out."""
    with pytest.raises(ValidationError):
        tiny_shape(**changes)

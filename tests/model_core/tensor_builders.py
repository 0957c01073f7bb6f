# SPDX-License-Identifier: Apache-2.0
"""Tiny random models, experts, banks and requests for the tests of tensors and of the laws."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from model_core.engine.engine import Engine
from model_core.engine.requests import Sampling, SequenceRequest, TokenEvent
from model_core.network.bank import ExpertBank
from model_core.network.decoder import Decoder, upcycle
from model_core.network.expert import Expert
from model_core.packing.forms import ExpertKind, FfnForm
from model_core.packing.manifest import ModelShape
from model_core.training.conversions import to_int8, to_narrow, to_split
from model_core.training.kinds import start_expert

BASE = "sha256:" + "b" * 64
VOCABULARY = 61


def digest(number: int) -> str:
    """A digest whose canonical place is scattered, and the same for the same number."""
    return "sha256:" + f"{random.Random(number).getrandbits(256):064x}"


def tiny_shape(**changes: Any) -> ModelShape:
    """Two layers, twenty-four wide, grouped keys."""
    fields: dict[str, Any] = {
        "n_layers": 2,
        "d_model": 24,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_ffn": 40,
        "vocab_size": VOCABULARY,
        "max_positions": 96,
        "rope_theta": 10_000.0,
        "norm_eps": 1e-6,
    }
    return ModelShape(**(fields | changes))


def random_decoder(shape: ModelShape, seed: int, std: float = 0.15) -> Decoder:
    """A decoder with random weights, norms and router rows (healthy scale, so that norms matter)."""
    decoder = Decoder(shape)
    decoder.init_weights(seed=seed, std=std)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.dim() == 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.3 * noise if name.endswith("router.row") else 1.0 + 0.1 * noise)
    return decoder


def random_expert(
    decoder: Decoder, seed: int, *, gated: bool = True, noise: float = 0.1, kind: ExpertKind = "full"
) -> Expert:
    """A copy of the public expert, moved away from it at random, of any kind."""
    expert, shape = upcycle(decoder, gated=gated), decoder.shape
    if kind == "narrow":
        width = max(1, shape.d_ffn - 1 - seed % 7)
        expert = to_narrow(decoder, expert, width, [torch.tensor(prompt(seed, 9))])
    elif kind == "low_rank":
        rank = 1 + seed % min(5, shape.d_model, shape.d_ffn)
        expert = start_expert(decoder, FfnForm(kind=kind, d_ffn=shape.d_ffn, rank=rank))
    if kind == "low_rank" and gated:
        expert.add_gates()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in expert.state_dict().items():
            step = noise * torch.randn(tensor.shape, generator=generator)
            if name.endswith("router.bias"):
                tensor.copy_(-step.abs())
            elif name.endswith("gate.scale"):
                tensor.copy_(1.0 + step.abs())
            else:
                tensor.add_(step)
    if kind == "split":
        return to_split(expert, next(n for n in (4, 3, 2, 1) if shape.d_ffn % n == 0))
    return to_int8(expert) if kind == "int8" else expert


def bank_of(decoder: Decoder, experts: dict[str, Expert]) -> ExpertBank:
    """A bank that holds copies of these experts (so that poison in one bank stays there)."""
    bank = ExpertBank(BASE, decoder)
    for name, expert in experts.items():
        bank.add(name, copy_of(expert))
    return bank


def copy_of(expert: Expert) -> Expert:
    """The same expert in memory of its own."""
    first = expert.layer(0)
    twin = Expert.of_form(
        expert.form,
        n_layers=len(expert.layers),
        d_model=first.router.row.shape[0],
        gated=first.gate is not None,
    )
    twin.load_state_dict({name: tensor.clone() for name, tensor in expert.state_dict().items()}, assign=True)
    return twin


def in_bfloat16(module: torch.nn.Module) -> None:
    """Turns weights into bfloat16 in place; what routes stays fp32, as in bundles."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "router." not in name and not (".gate." in name and ".ffn." not in name):
                parameter.data = parameter.data.bfloat16()


def random_world(
    seed: int, n_experts: int, *, kinds: Sequence[ExpertKind] = ("full",), **shape: Any
) -> tuple[Decoder, dict[str, Expert]]:
    """A random decoder and experts by digest, of the given kinds in turn."""
    decoder = random_decoder(tiny_shape(**shape), seed)
    experts = {
        digest(1000 * seed + i): random_expert(decoder, 1000 * seed + i, kind=kinds[i % len(kinds)])
        for i in range(n_experts)
    }
    return decoder, experts


def prompt(seed: int, length: int) -> tuple[int, ...]:
    """Random token ids."""
    numbers = random.Random(seed)
    return tuple(numbers.randrange(VOCABULARY) for _ in range(length))


def request(
    bank: ExpertBank,
    name: str,
    ids: Sequence[int],
    experts: Iterable[str],
    k: int,
    **sampling: Any,
) -> SequenceRequest:
    """A greedy request of 8 tokens unless told otherwise."""
    chosen = tuple(experts)
    settings: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0}
    return SequenceRequest(
        request_id=name,
        prompt_ids=tuple(ids),
        experts=chosen,
        top_k=k,
        state_key=bank.state_key(chosen, top_k=k, consumer="app"),
        sampling=Sampling(**(settings | sampling)),
    )


def drain(engine: Engine, requests: Iterable[SequenceRequest] = ()) -> dict[str, list[TokenEvent]]:
    """Submits requests, runs the engine until it is idle and returns each sequence's events."""
    for item in requests:
        engine.submit(item)
    events: dict[str, list[TokenEvent]] = {}
    while not engine.idle:
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
        engine.commit()
    return events


def tokens(events: Sequence[TokenEvent]) -> list[int]:
    """The token ids of events."""
    return [event.token_id for event in events]

# SPDX-License-Identifier: Apache-2.0
"""Packed weights compute what the bank's own do, follow the bank, and hold nothing that has left it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tensor_builders import bank_of, copy_of, in_bfloat16, random_expert, random_world

from model_core.engine.runner import Piece
from model_core.engine.torch_runner import TorchRunner
from model_core.engine.weights import PackedWeights, can_pack
from model_core.network.bank import ExpertBank
from model_core.packing.forms import EXPERT_KINDS

pytestmark = pytest.mark.skipif(
    not can_pack(torch.float32), reason="this torch has no packed products for this processor"
)


def _bank(seed: int, *, half: bool, family: str, tied: bool = False) -> ExpertBank:
    kinds = ("full", "narrow", "split") if half else EXPERT_KINDS
    decoder, experts = random_world(
        seed, len(kinds), kinds=kinds, family=family, tie_embeddings=tied, norm_eps=1e-5
    )
    if half:
        for module in (decoder, *experts.values()):
            in_bfloat16(module)
    return bank_of(decoder, experts)


def _runners(bank: ExpertBank) -> tuple[TorchRunner, TorchRunner]:
    plain = TorchRunner(bank, n_pages=6, n_tails=3)
    return plain, TorchRunner(bank, n_pages=6, n_tails=3, weights=PackedWeights(bank))


def _pieces(bank: ExpertBank, *, without: str | None = None) -> list[Piece]:
    """A prompt under all experts, one under some, a token of the base alone."""
    every = bank.columns(name for name in bank.digests if name != without)
    return [
        Piece(ids=range(3, 21), start=0, pages=[0, 1], tail=0, columns=every, top_k=3),
        Piece(ids=[5, 6], start=0, pages=[2], tail=1, columns=every[:3], top_k=2),
        Piece(ids=[7], start=0, pages=[3], tail=2, columns=(0,), top_k=1),
    ]


@pytest.mark.parametrize(
    ("half", "family", "tied"), [(False, "olmo2", False), (False, "llama", True), (True, "olmoe", False)]
)
def test_packed_weights_compute_what_plain_ones_do(half: bool, family: str, tied: bool) -> None:
    """Every kind of expert, both norms' places, tied embeddings, both dtypes: the same within rounding."""
    if half and not can_pack(torch.bfloat16):
        pytest.skip("no packed products in bf16")
    bank = _bank(41, half=half, family=family, tied=tied)
    plain, packed = (runner.run(_pieces(bank)) for runner in _runners(bank))
    tolerance = 0.15 if half else 1e-4
    assert torch.allclose(packed.logits_BV, plain.logits_BV, atol=tolerance, rtol=tolerance)
    assert torch.allclose(packed.shares_BE, plain.shares_BE, atol=0.05 if half else 1e-5)


def test_packed_copies_follow_the_bank() -> None:
    """Prepared once and not again; a poisoned column gives NaN to whoever takes it and to nobody else."""
    bank = _bank(42, half=False, family="olmo2")
    plain, packed = _runners(bank)
    name, expert = "sha256:" + "0" * 64, random_expert(bank.decoder, 9)
    packed.prepare(name, expert)
    made = packed.weights._prepared[name]  # type: ignore[attr-defined]
    bank.add(name, expert)
    for runner in (plain, packed):
        runner.refresh()
    assert packed.weights._held[name] is made  # type: ignore[attr-defined]
    pieces = _pieces(bank)
    assert torch.allclose(packed.run(pieces).logits_BV, plain.run(pieces).logits_BV, atol=1e-4)
    place = bank.columns([name])[1]
    spared = _pieces(bank, without=name)
    before = packed.run(spared).logits_BV
    bank.poison(name)
    packed.refresh()
    assert torch.equal(packed.run(spared).logits_BV, before)
    caught = Piece(ids=[1], start=0, pages=[4], tail=0, columns=(0, place), top_k=2)
    assert packed.run([caught]).logits_BV.isnan().all()


def test_what_has_left_the_bank_is_let_go() -> None:
    """A removed expert's packed copy, and one that was prepared and never came, end with them."""
    bank = _bank(43, half=False, family="olmo2")
    _, packed = _runners(bank)
    name = bank.digests[0]
    function = weakref.ref(packed.weights._held[name].layers[0])  # type: ignore[attr-defined]
    stray = copy_of(random_expert(bank.decoder, 10))
    packed.prepare("sha256:" + "1" * 64, stray)
    bank.remove(name)
    del stray
    gc.collect()
    packed.refresh()
    gc.collect()
    assert function() is None
    assert not packed.weights._prepared  # type: ignore[attr-defined]


def test_what_cannot_be_packed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another dtype, a torch without the library, or one whose products are wrong: not packed."""
    assert not can_pack(torch.float64)
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert not can_pack(torch.float32)
    monkeypatch.setattr("model_core.engine.weights._product", lambda x, packed, _: x @ torch.ones(40, 24))
    assert not can_pack(torch.float32)

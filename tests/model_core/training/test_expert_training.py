# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_builders import same_tensors, texts, tiny_decoder, tiny_recipe, tiny_tokenizer

from model_core.errors import DatasetRefused
from model_core.evaluation.bits import bits_per_byte, bits_per_document
from model_core.evaluation.shares import routing_shares
from model_core.network.checkpoint import load_expert, save_expert
from model_core.network.decoder import upcycle
from model_core.network.router import prefix_mean, running_sum
from model_core.training.calibration import bound_router_rows, residual_norms
from model_core.training.expert import tensors_digest, train_expert
from model_core.training.finishing import public_halves
from model_core.training.gates import fit_gates, gate_features, residual_means, set_router_rows, token_rows
from model_core.training.objective import PairObjective

_RECIPE = tiny_recipe()
_TOKENIZER = tiny_tokenizer()
_PUBLIC = texts("public", 20, seed=9)
_OWN = texts("own", 40)


def test_training_leaves_the_base_byte_identical() -> None:
    """Law 1: after an expert's training every base tensor has its bytes, and none has gradient or state."""
    decoder, twin = tiny_decoder(), tiny_decoder()
    before = tensors_digest(decoder)
    result = train_expert(decoder, _TOKENIZER, _OWN, _PUBLIC, _RECIPE, seed=1)
    assert same_tensors(decoder, twin)
    assert tensors_digest(decoder) == before == result.base_tensors_digest
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in decoder.parameters())
    assert result.expert is not None
    assert not torch.equal(result.expert.layer(0).ffn.gate.weight, decoder.layer(0).ffn.gate.weight)


def test_the_optimizer_sees_the_experts_parameters_alone() -> None:
    """Law 1: what an optimizer is given is the expert's networks and router rows, nothing of the base."""
    decoder = tiny_decoder()
    expert = upcycle(decoder, gated=True)
    names = dict(PairObjective(decoder, expert, logit_z_loss=0, router_z_loss=0).trainable())
    mine = {id(parameter) for parameter in expert.parameters()}
    assert {id(parameter) for parameter in names.values()} <= mine
    assert {name.split(".", 3)[3] for name in names} == {
        "ffn.gate.weight", "ffn.up.weight", "ffn.down.weight", "router.row",
    }  # fmt: skip


def test_a_checkpoint_holds_no_state_of_the_base(tmp_path: Path) -> None:
    """Law 1 on disk: a run's checkpoint names the expert's tensors only."""
    from safetensors.torch import load_file

    train_expert(tiny_decoder(), _TOKENIZER, _OWN, _PUBLIC, _RECIPE, seed=1, work_folder=tmp_path)
    (*_, newest) = sorted((tmp_path / "checkpoints").iterdir())
    stored = {*load_file(newest / "trained.safetensors"), *load_file(newest / "optimizer.safetensors")}
    assert stored
    assert all(name.startswith("expert.layers.") for name in stored - {"random/state"})


def test_the_expert_learns_its_owners_text_and_leaves_public_text_alone() -> None:
    """On the owner's held-out text the pair beats the base; on public text it stays within the tolerance."""
    decoder = tiny_decoder()
    recipe = _RECIPE.model_copy(update={"steps": 60})
    result = train_expert(decoder, _TOKENIZER, _OWN, _PUBLIC, recipe, seed=1)
    assert result.expert is not None
    assert result.calibration is not None
    heldout = texts("own", 8, seed=4)
    base = bits_per_byte(bits_per_document(decoder, heldout, _TOKENIZER))
    pair = bits_per_byte(bits_per_document(decoder, heldout, _TOKENIZER, experts=(result.expert,), top_k=2))
    assert pair < 0.9 * base
    assert result.calibration.held
    assert result.calibration.public_excess <= recipe.public_tolerance
    own = routing_shares(decoder, (result.expert,), heldout, _TOKENIZER)[:, 1].mean()
    public = routing_shares(decoder, (result.expert,), texts("public", 8, seed=77), _TOKENIZER)[:, 1].mean()
    assert own > 2 * public
    assert all(fit.accuracy > 0.9 for fit in result.gates)


def test_a_stopped_expert_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """Stopped and resumed, gates and calibration included, the expert's file has the same bytes."""
    calls = iter([False] * 6 + [True] + [False] * 1000)
    cut = train_expert(
        tiny_decoder(),
        _TOKENIZER,
        _OWN,
        _PUBLIC,
        _RECIPE,
        seed=1,
        work_folder=tmp_path / "a",
        stop=lambda: next(calls),
    )
    assert cut.expert is None
    resumed = train_expert(
        tiny_decoder(), _TOKENIZER, _OWN, _PUBLIC, _RECIPE, seed=1, work_folder=tmp_path / "a"
    )
    whole = train_expert(tiny_decoder(), _TOKENIZER, _OWN, _PUBLIC, _RECIPE, seed=1)
    assert resumed.outcome.resumed_from == 7
    assert resumed.expert is not None
    assert whole.expert is not None
    save_expert(resumed.expert, tmp_path / "resumed.safetensors")
    save_expert(whole.expert, tmp_path / "whole.safetensors")
    assert (tmp_path / "resumed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_gates_are_bit_equal_in_chunks_and_after_a_file(tmp_path: Path) -> None:
    """Prefix means carried over chunks have the bits of a whole pass, and a saved gate decides alike."""
    decoder = tiny_decoder()
    expert = upcycle(decoder)
    own, public = (token_rows(docs, _TOKENIZER, max_tokens=64) for docs in (_OWN, _PUBLIC))
    fit_gates(decoder, expert, own, public, positions=12)
    h_BSD = torch.randn(1, 40, 32)
    whole = running_sum(h_BSD)
    first = running_sum(h_BSD[:, :13])
    rest = running_sum(h_BSD[:, 13:], first[:, -1])
    assert torch.equal(whole, torch.cat((first, rest), dim=1))
    assert torch.equal(prefix_mean(h_BSD)[:, -1], whole[:, -1] / 40)
    save_expert(expert, tmp_path / "e.safetensors")
    loaded = load_expert(tmp_path / "e.safetensors", decoder.shape)
    with torch.no_grad():
        ids = own[0][None]
        assert torch.equal(decoder(ids, (expert,), top_k=2), decoder(ids, (loaded,), top_k=2))


def test_gates_part_two_dialects_and_are_the_same_each_time() -> None:
    """A gate is open on new own text and shut on new public text; fitting repeats its bits."""
    decoder = tiny_decoder()
    own, public = (token_rows(docs, _TOKENIZER, max_tokens=64) for docs in (_OWN, _PUBLIC))
    first, second = upcycle(decoder), upcycle(decoder)
    fit_gates(decoder, first, own, public, positions=12)
    fit_gates(decoder, second, own, public, positions=12)
    assert same_tensors(first, second)
    new = {
        kind: gate_features(
            decoder, first, token_rows(texts(kind, 10, seed=50), _TOKENIZER, max_tokens=64), positions=8
        )
        for kind in ("own", "public")
    }
    for layer in range(2):
        gate = first.layer(layer).gate
        assert gate is not None
        score = {
            kind: ((features[layer] - gate.mean) / gate.scale) @ gate.weight.double() + gate.bias
            for kind, features in new.items()
        }
        # The first positions say little in either dialect (the very first holds the same token in both).
        late = {kind: values.view(10, -1)[:, 4:] for kind, values in score.items()}
        assert (late["own"] > 0).double().mean() > 0.8
        assert (late["public"] < 0).double().mean() > 0.8


def test_router_rows_start_from_centred_means_and_are_bounded() -> None:
    """Average public text gets logit 0, average own text the lift; an inflated row is cut to the bound."""
    decoder = tiny_decoder()
    expert = upcycle(decoder)
    own, public = (token_rows(docs, _TOKENIZER, max_tokens=64) for docs in (_OWN, _PUBLIC))
    own_LD, public_LD = residual_means(decoder, own), residual_means(decoder, public)
    set_router_rows(expert, own_LD, public_LD, lift=1.5)
    norms = residual_norms(decoder, public)
    for layer in range(2):
        row = expert.layer(layer).router.row.detach().double()
        assert float(row @ public_LD[layer]) == pytest.approx(0, abs=1e-5)
        assert float(row @ own_LD[layer]) == pytest.approx(1.5, abs=1e-4)
        with torch.no_grad():
            expert.layer(layer).router.row.mul_(1000)
    assert bound_router_rows(expert, norms, logit_bound=8.0) == 2
    for layer in range(2):
        assert float(expert.layer(layer).router.row.detach().double().norm() * norms[layer]) == pytest.approx(
            8.0, rel=1e-5
        )
    assert bound_router_rows(expert, norms, logit_bound=8.1) == 0


def test_too_little_calibration_text_is_refused() -> None:
    """A base that travels with one calibration document cannot fit and calibrate on different ones."""
    with pytest.raises(DatasetRefused):
        public_halves(_PUBLIC[:1])

# SPDX-License-Identifier: Apache-2.0
"""Kinds of experts in training: conversions, experts trained as a kind, and recipes that ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_builders import prompt, random_decoder, random_expert, tiny_shape
from training_builders import same_tensors, texts, tiny_base, tiny_decoder, tiny_tokenizer

from model_core.errors import RecipeRefused
from model_core.network.bank import ExpertBank
from model_core.network.checkpoint import load_expert, load_expert_folder, save_expert
from model_core.network.expert import Expert
from model_core.packing.bundle import check_bundle, write_bundle
from model_core.packing.canonical import digest_file
from model_core.packing.forms import EXPERT_KINDS, ExpertKind, FfnForm
from model_core.packing.manifest import BaseManifest
from model_core.text.batches import pack
from model_core.training.conversions import (
    neuron_weights,
    to_full,
    to_int8,
    to_low_rank,
    to_narrow,
    to_split,
)
from model_core.training.expert import tensors_digest, train_expert
from model_core.training.expert_recipe import ExpertRecipe
from model_core.training.kinds import convert, start_expert
from model_core.training.objective import PairObjective
from model_core.training.recipe import TrainingRecipe
from model_core.training.run import TrainingRun

_ROWS = [torch.tensor(prompt(seed, 12)) for seed in range(3)]


def _routing(expert: Expert) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in expert.state_dict().items() if ".ffn." not in name}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), gated=st.booleans())
def test_conversions_that_lose_nothing(seed: int, gated: bool) -> None:
    """Full rank within 1e-5, any split within 1e-6 and all neurons exactly give the expert's own rows."""
    decoder = random_decoder(tiny_shape(), seed)
    expert = random_expert(decoder, seed, gated=gated)
    before = tensors_digest(expert.requires_grad_(False))
    low, kept = to_low_rank(decoder, expert, 24)
    made = {
        1e-5: low,
        1e-6: to_split(expert, (1, 2, 4, 5, 8, 10, 20, 40)[seed % 8]),
        0.0: to_narrow(decoder, expert, 40, []),
    }
    assert kept == pytest.approx(1.0)
    x = torch.randn(9, 24, generator=torch.Generator().manual_seed(seed))
    for bound, other in made.items():
        for index in range(2):
            public = decoder.layer(index).ffn
            ours = other.layer(index).row_function(public)(x)
            theirs = expert.layer(index).row_function(public)(x)
            assert (ours - theirs).abs().max() <= bound * max(1.0, float(theirs.abs().max()))
        routing = _routing(other)
        assert all(torch.equal(routing[name], tensor) for name, tensor in _routing(expert).items())
        assert routing.keys() == _routing(expert).keys()
    assert tensors_digest(expert) == before


def test_the_share_that_a_rank_keeps_is_that_of_the_change() -> None:
    """The kept share is 1 less what is left of the change, and grows with the rank."""
    decoder = random_decoder(tiny_shape(), 4)
    expert = random_expert(decoder, 4)
    shares = []
    for rank in (1, 4, 12):
        low, kept = to_low_rank(decoder, expert, rank)
        left, whole = 0.0, 0.0
        for index in range(2):
            public = decoder.layer(index).ffn
            parts = (low.layer(index).dense_ffn(public), expert.layer(index).dense_ffn(public), public)
            for ours, own, base in zip(parts[0], parts[1], public.dense(public), strict=True):
                left += float((ours - own).detach().square().sum())
                whole += float((own - base).detach().square().sum())
        assert kept == pytest.approx(1 - left / whole, abs=1e-5)
        shares.append(kept)
    assert shares == sorted(shares)
    assert shares[0] < 0.5
    untouched, kept = to_low_rank(decoder, start_expert(decoder, FfnForm(d_ffn=40)), 2)
    assert kept == 1.0
    assert not any(tensor.any() for name, tensor in untouched.state_dict().items() if name.endswith(".b"))


def test_narrow_keeps_the_neurons_that_matter_on_the_owners_text() -> None:
    """Neurons that add nothing on the text go first; what is kept stands in its old order."""
    decoder = random_decoder(tiny_shape(), 5)
    expert = random_expert(decoder, 5)
    idle = [3, 17, 18, 39]
    with torch.no_grad():
        for index in range(2):
            expert.layer(index).ffn.down.weight[:, idle] = 0.0  # type: ignore[union-attr, index]
    assert (neuron_weights(decoder, expert, _ROWS)[:, idle] == 0).all()
    narrow = to_narrow(decoder, expert, 36, _ROWS)
    ids = torch.tensor([prompt(5, 14)])
    with torch.no_grad():
        whole, cut = decoder(ids, [expert], top_k=2), decoder(ids, [narrow], top_k=2)
        worse = decoder(ids, [to_narrow(decoder, expert, 30, _ROWS)], top_k=2)
    assert torch.allclose(whole, cut, atol=1e-5)
    assert not torch.allclose(whole, worse, atol=1e-3)
    assert narrow.size_bytes < expert.size_bytes


def test_conversions_that_make_no_sense_are_refused() -> None:
    """Each by the recipe's own error, before anything is computed."""
    decoder = random_decoder(tiny_shape(), 6)
    expert = random_expert(decoder, 6)
    low, _ = to_low_rank(decoder, expert, 2)
    narrow = to_narrow(decoder, expert, 8, _ROWS)
    for act in (
        lambda: to_low_rank(decoder, expert, 25),
        lambda: to_low_rank(decoder, narrow, 2),
        lambda: to_narrow(decoder, expert, 41, _ROWS),
        lambda: to_narrow(decoder, expert, 8, []),
        lambda: to_split(expert, 7),
        lambda: to_split(low, 2),
        lambda: to_int8(low),
        lambda: start_expert(decoder, FfnForm(kind="int8", d_ffn=40)),
    ):
        with pytest.raises(RecipeRefused):
            act()


@pytest.mark.parametrize(
    "form",
    [
        FfnForm(kind="low_rank", d_ffn=48, rank=4),
        FfnForm(kind="narrow", d_ffn=16),
        FfnForm(kind="split", d_ffn=48, pieces=3),
    ],
    ids=lambda form: form.kind,
)
def test_an_expert_trained_as_its_kind_learns_and_leaves_the_base_alone(form: FfnForm) -> None:
    """The loss falls, every tensor of the networks moves, and no byte of the base does."""
    decoder = tiny_decoder()
    packed = pack(texts("own", 30), tiny_tokenizer(), sequence_tokens=32, seed=1)
    expert = start_expert(decoder, form, [torch.from_numpy(packed.rows_NS1[0]).long()])
    own = {name: tensor.clone() for name, tensor in expert.state_dict().items()}
    before = tensors_digest(decoder)
    recipe = TrainingRecipe(
        steps=25, batch_rows=4, sequence_tokens=32, learning_rate=1e-2, warmup_share=0.0, precision="fp32"
    )
    objective = PairObjective(decoder, expert, logit_z_loss=1e-5, router_z_loss=1e-3)
    rows = torch.from_numpy(packed.rows_NS1[:16]).long()

    def loss() -> float:
        with torch.no_grad():
            return float(objective(rows[:, :-1], rows[:, 1:])[1])

    first = loss()
    TrainingRun(objective, packed, recipe, seed=0).train()
    assert loss() < 0.96 * first
    assert tensors_digest(decoder) == before
    moved = {name for name, tensor in expert.state_dict().items() if not torch.equal(tensor, own[name])}
    assert moved == {name for name in own if ".ffn." in name or name.endswith("router.row")}
    assert all(parameter.grad is None for parameter in decoder.parameters())


_SETTINGS: dict[str, Any] = {
    "steps": 4,
    "batch_rows": 2,
    "sequence_tokens": 32,
    "checkpoint_every": 4,
    "fit_documents": 4,
    "fit_tokens": 24,
    "gate_positions": 4,
    "calibration_documents": 2,
    "heldout_characters": 128,
    "precision": "fp32",
}
_SIZES: dict[ExpertKind, dict[str, int]] = {
    "full": {},
    "narrow": {"expert_width": 20},
    "low_rank": {"expert_rank": 6},
    "split": {"expert_pieces": 4},
    "int8": {},
}


@pytest.mark.parametrize("kind", EXPERT_KINDS)
def test_a_recipe_makes_an_expert_of_its_kind_that_survives_a_sealed_bundle(
    kind: ExpertKind, tmp_path: Path, bundles: Any
) -> None:
    """Trained, converted, gated, calibrated, saved, sealed, checked and loaded: the same bytes and logits."""
    base = tiny_base(tmp_path)
    assert isinstance(base.manifest, BaseManifest)
    decoder = tiny_decoder()
    recipe = ExpertRecipe.of({**_SETTINGS, **_SIZES[kind], "expert_kind": kind})
    result = train_expert(decoder, tiny_tokenizer(), texts("own", 8), texts("public", 8), recipe, seed=1)
    expert = result.expert
    assert expert is not None
    assert expert.form == recipe.form(decoder.shape)
    assert expert.gated
    assert (0 < result.kept_energy < 1) == (kind == "low_rank")
    save_expert(expert, tmp_path / "expert.safetensors")
    files: dict[str, Any] = {"expert.safetensors": tmp_path / "expert.safetensors", "metrics.jsonl": b"{}\n"}
    blank = bundles.expert_manifest(
        {"metrics.jsonl": b"{}\n"} | {"expert.safetensors": b""},
        base_digest=base.digest,
        expert_kind=kind,
        d_ffn=expert.form.d_ffn,
        rank=expert.form.rank,
        pieces=expert.form.pieces,
        n_layers=2,
        d_model=32,
    )
    digests = blank.files | {"expert.safetensors": digest_file(tmp_path / "expert.safetensors")}
    write_bundle(tmp_path / "sealed", blank.model_copy(update={"files": digests}), files, bundles.owner)
    check_bundle(tmp_path / "sealed")
    _, loaded = load_expert_folder(tmp_path / "sealed", base.digest, decoder.shape)
    assert loaded.form == expert.form
    assert same_tensors(loaded, expert)
    guess = load_expert(tmp_path / "sealed" / "expert.safetensors", decoder.shape)
    assert guess.form == expert.form
    bank = ExpertBank(base.digest, decoder)
    bank.add("sha256:" + "a" * 64, loaded)
    ids = torch.tensor([prompt(1, 9)])
    with torch.no_grad():
        assert torch.equal(decoder(ids, [loaded], top_k=2), decoder(ids, [expert], top_k=2))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"expert_kind": "low_rank"}, "expert_rank"),
        ({"expert_kind": "low_rank", "expert_rank": 33}, "expert_rank"),
        ({"expert_kind": "narrow", "expert_width": 49}, "expert_width"),
        ({"expert_kind": "narrow", "expert_width": 4, "expert_rank": 2}, "expert_rank"),
        ({"expert_kind": "split", "expert_pieces": 5}, "expert_pieces"),
        ({"expert_kind": "int8", "trained_as_kind": True}, "trained_as_kind"),
        ({"expert_rank": 4}, "expert_rank"),
    ],
)
def test_recipes_of_impossible_kinds_are_refused_before_training(changes: dict[str, Any], field: str) -> None:
    """The refusal names the field, and no text is read for it."""
    recipe = ExpertRecipe.of({**_SETTINGS, **changes})
    with pytest.raises(RecipeRefused) as caught:
        train_expert(tiny_decoder(), tiny_tokenizer(), (), (), recipe, seed=1)
    assert field in caught.value.facts["fields"]


def test_a_kind_goes_over_into_every_other() -> None:
    """From each kind to each, with what only low-rank and int8 lose."""
    decoder = random_decoder(tiny_shape(), 8)
    forms = [
        FfnForm(d_ffn=40),
        FfnForm(kind="narrow", d_ffn=40),
        FfnForm(kind="low_rank", d_ffn=40, rank=24),
        FfnForm(kind="split", d_ffn=40, pieces=2),
        FfnForm(kind="int8", d_ffn=40),
    ]
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(8))
    start = random_expert(decoder, 8)
    public = decoder.layer(1).ffn
    wanted = start.layer(1).row_function(public)(x)
    for first in forms:
        one, _ = convert(decoder, start, first, _ROWS)
        for second in forms:
            other, _ = convert(decoder, one, second, _ROWS)
            assert other.form == second
            got = other.layer(1).row_function(public)(x)
            loose = "int8" in (first.kind, second.kind)
            assert (got - wanted).abs().max() <= (0.05 if loose else 1e-4) * wanted.abs().max()
    assert to_full(decoder, start).form == FfnForm(d_ffn=40)

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from training_builders import same_tensors, texts, tiny_decoder, tiny_tokenizer

from model_core.errors import (
    BundleWrongShape,
    DatasetRefused,
    DigestMismatch,
    ManifestInvalid,
    RouterNeedsRedo,
)
from model_core.network.decoder import Decoder, upcycle
from model_core.network.expert import Expert
from model_core.network.tuned_router import (
    TunedRouter,
    load_tuned_router,
    rows_to_bytes,
    save_tuned_router,
    with_rows,
)
from model_core.packing.canonical import canonical_bytes, digest_bytes
from model_core.packing.tuned_router import (
    TUNED_ROUTER_FILE,
    TUNED_ROUTER_WEIGHTS_FILE,
    parse_tuned_router_manifest,
)
from model_core.text.batches import pack
from model_core.text.documents import Document
from model_core.training.tuning import (
    RouterObjective,
    RouterRecipe,
    apply_tuned,
    choose_router,
    redo_tuning,
    tune_router,
)

_TOKENIZER = tiny_tokenizer()
_BASE = "sha256:" + "b" * 64
_NAMES = tuple("sha256:" + letter * 64 for letter in "135")
_RECIPE = RouterRecipe(steps=6, batch_rows=2, sequence_tokens=24, precision="fp32")
_PROXIES: dict[str, tuple[Document, ...]] = {
    name: texts("own" if place else "public", 4 + 3 * place, seed=place) for place, name in enumerate(_NAMES)
}
_PUBLIC = texts("public", 12, seed=9)


def _experts(decoder: Decoder) -> dict[str, Expert]:
    found = {}
    for place, name in enumerate(_NAMES):
        generator = torch.Generator().manual_seed(place)
        expert = upcycle(decoder, gated=place == 1).requires_grad_(False)
        for tensor in expert.state_dict().values():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
        found[name] = expert
    return found


def _tune(
    decoder: Decoder,
    experts: Mapping[str, Expert],
    recipe: RouterRecipe = _RECIPE,
    seed: int = 2,
) -> TunedRouter:
    proxies = {name: _PROXIES[name] for name in experts}
    return tune_router(decoder, experts, proxies, _PUBLIC, _TOKENIZER, recipe, seed, base_digest=_BASE)


def test_tuning_changes_router_rows_and_nothing_else() -> None:
    """Base and experts keep their bytes; every member's row moved in every layer; networks are shared."""
    decoder = tiny_decoder()
    experts, twins = _experts(decoder), _experts(decoder)
    tuned = _tune(decoder, experts)
    assert same_tensors(decoder, tiny_decoder())
    assert all(same_tensors(experts[name], twins[name]) for name in _NAMES)
    applied = apply_tuned(experts, tuned)
    assert list(applied) == sorted(_NAMES)
    for name, expert in applied.items():
        before, after = experts[name].state_dict(), expert.state_dict()
        moved = {tensor for tensor in before if not torch.equal(before[tensor], after[tensor])}
        assert moved == {f"layers.{layer}.router.row" for layer in range(2)}
        shared = (
            expert.layer(0).ffn.gate.weight.data_ptr() == experts[name].layer(0).ffn.gate.weight.data_ptr()
        )
        assert shared


def test_only_rows_are_trained_with_every_expert_on() -> None:
    """What the optimizer gets is one tensor of rows a layer, the public row among them, with k = n."""
    decoder = tiny_decoder()
    objective = RouterObjective(
        decoder, list(_experts(decoder).values()), logit_z_loss=1e-5, router_z_loss=1e-3
    )
    assert {name: tuple(value.shape) for name, value in objective.trainable()} == {
        "rows.0": (4, 32), "rows.1": (4, 32),
    }  # fmt: skip
    packed = pack(_PUBLIC, _TOKENIZER, sequence_tokens=24, seed=0)
    loss, _ = objective(*packed.batch([0, 1]))
    loss.backward()
    for rows_ED in objective.rows:
        assert (rows_ED.grad.norm(dim=1) > 0).all()


def test_taking_the_public_rows_movement_off_the_members_keeps_the_function() -> None:
    """The tuned model, public row and all, equals the frozen base with the members' folded rows."""
    decoder = tiny_decoder()
    experts = _experts(decoder)
    ordered = [experts[name] for name in sorted(experts)]
    objective = RouterObjective(decoder, ordered, logit_z_loss=0, router_z_loss=0)
    generator = torch.Generator().manual_seed(1)
    ids_BS, targets_BS = pack(_PUBLIC, _TOKENIZER, sequence_tokens=24, seed=0).batch([0, 1, 2])
    with torch.no_grad():
        for rows_ED in objective.rows:
            rows_ED.add_(0.5 * torch.randn(rows_ED.shape, generator=generator))
        _, wanted = objective(ids_BS, targets_BS)
        folded = [
            with_rows(expert, rows) for expert, rows in zip(ordered, objective.member_rows(), strict=True)
        ]
        logits_BSV = decoder(ids_BS, folded)
        loss = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), targets_BS.flatten())
    assert float(loss) == pytest.approx(float(wanted), abs=1e-5)
    assert float(wanted) != pytest.approx(
        float(
            torch.nn.functional.cross_entropy(decoder(ids_BS, ordered).flatten(0, 1), targets_BS.flatten())
        ),
        abs=1e-4,
    )


def test_every_source_has_an_equal_share_of_the_text() -> None:
    """Proxies of every member and public text fill equally many rows; small ones are repeated."""
    decoder = tiny_decoder()
    tuned = _tune(decoder, _experts(decoder))
    rows = {source.rows for source in (*tuned.manifest.proxies.values(), tuned.manifest.public)}
    assert len(rows) == 1
    smallest = len(pack(_PROXIES[_NAMES[0]], _TOKENIZER, sequence_tokens=24, seed=2).rows_NS1)
    assert smallest < rows.pop() <= _RECIPE.most_reuse * smallest


def test_a_removal_falls_back_to_own_rows_until_tuned_again() -> None:
    """Without one member the tuned rows are refused, own rows apply, and a redo is asked for."""
    decoder = tiny_decoder()
    experts = _experts(decoder)
    tuned = _tune(decoder, experts)
    whole = choose_router(experts, tuned, base_digest=_BASE)
    assert (whole.variant, whole.needs_redo) == ("tuned", False)
    assert whole.label == {"variant": "tuned", "digest": tuned.digest}
    left = {name: experts[name] for name in _NAMES[1:]}
    with pytest.raises(RouterNeedsRedo) as refusal:
        apply_tuned(left, tuned)
    assert refusal.value.facts["left"] == [_NAMES[0]]
    fallback = choose_router(left, tuned, base_digest=_BASE)
    assert (fallback.variant, fallback.needs_redo) == ("gated", True)
    assert fallback.label == {"variant": "gated"}
    assert all(fallback.experts[name] is experts[name] for name in left)
    plain = choose_router(experts, None, base_digest=_BASE)
    assert (plain.variant, plain.needs_redo) == ("gated", False)
    assert choose_router(experts, tuned, base_digest="sha256:" + "c" * 64).needs_redo


def test_a_redo_equals_a_tuning_that_never_saw_the_removed_member() -> None:
    """Byte for byte, with the settings and seed of the first tuning; then the tuned rows apply again."""
    decoder = tiny_decoder()
    experts = _experts(decoder)
    recipe = _RECIPE.model_copy(update={"learning_rate": 0.01})
    tuned = _tune(decoder, experts, recipe, seed=7)
    left = {name: experts[name] for name in _NAMES[1:]}
    proxies = {name: _PROXIES[name] for name in left}
    again = redo_tuning(tuned, decoder, left, proxies, _PUBLIC, _TOKENIZER)
    never = _tune(decoder, left, recipe, seed=7)
    assert again.digest == never.digest
    assert choose_router(left, again, base_digest=_BASE).variant == "tuned"
    with pytest.raises(DatasetRefused):
        redo_tuning(tuned, decoder, left, _PROXIES, _PUBLIC, _TOKENIZER)
    with pytest.raises(RouterNeedsRedo):
        redo_tuning(tuned, decoder, apply_tuned(experts, tuned), _PROXIES, _PUBLIC, _TOKENIZER)


def test_files_come_back_whole_or_not_at_all(tmp_path: Path) -> None:
    """Saved and loaded by digest the value is equal; any changed byte, shape or member list is refused."""
    decoder = tiny_decoder()
    tuned = _tune(decoder, _experts(decoder))
    save_tuned_router(tuned, tmp_path / "a")
    loaded = load_tuned_router(tmp_path / "a", expect_digest=tuned.digest)
    assert loaded.manifest == tuned.manifest
    assert all(torch.equal(loaded.rows[name], tuned.rows[name]) for name in _NAMES)
    with pytest.raises(DigestMismatch):
        load_tuned_router(tmp_path / "a", expect_digest=_BASE)
    weights = tmp_path / "a" / TUNED_ROUTER_WEIGHTS_FILE
    body = bytearray(weights.read_bytes())
    body[-1] ^= 1
    weights.write_bytes(body)
    with pytest.raises(DigestMismatch):
        load_tuned_router(tmp_path / "a", expect_digest=tuned.digest)
    short = rows_to_bytes({name: rows[:1] for name, rows in tuned.rows.items()})
    wrong = tuned.manifest.model_copy(update={"weights_digest": digest_bytes(short)})
    weights.write_bytes(short)
    (tmp_path / "a" / TUNED_ROUTER_FILE).write_bytes(wrong.to_bytes())
    with pytest.raises(BundleWrongShape):
        load_tuned_router(tmp_path / "a", expect_digest=wrong.digest)
    document = tuned.manifest.model_dump(mode="json")
    for change in (
        {"members": list(reversed(_NAMES))},
        {"members": list(_NAMES[:2])},
        {"base_digest": "b"},
        {"steps": "6"},
    ):
        with pytest.raises(ManifestInvalid):
            parse_tuned_router_manifest(canonical_bytes(document | change))
    assert parse_tuned_router_manifest(canonical_bytes(document | {"later": 1})) == tuned.manifest

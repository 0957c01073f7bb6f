# SPDX-License-Identifier: Apache-2.0
"""Compositions as model folders: opened by transformers they compute the same, or say by how much not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_builders import seal_base, seal_expert
from safetensors import safe_open
from tensor_builders import in_bfloat16, prompt, random_decoder, random_expert, tiny_shape

from model_core.errors import BundleWrongBase, ExportNotExact, ModelFolderRefused
from model_core.interop.card import MemberTerms
from model_core.interop.exporting import ExportTerms, export_composition
from model_core.interop.progress import TransferProgress
from model_core.network.bank import ExpertBank, forward_logits
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.packing.bundle import CheckedBundle
from model_core.packing.forms import EXPERT_KINDS
from model_core.text.documents import Document

TERMS = ExportTerms(title="Three | experts")
TEXT = [Document(id="a", text="w1 w2 w3 w4 w5 w6 w7"), Document(id="b", text="w9 w8 w7")]


def plain_expert(decoder: Decoder, seed: int, **options: Any) -> Expert:
    """An expert without gates and biases."""
    expert = random_expert(decoder, seed, gated=False, **options)
    for layer in range(decoder.shape.n_layers):
        torch.nn.init.zeros_(expert.layer(layer).router.get_buffer("bias"))
    return expert


def sealed(
    decoder: Decoder, experts: list[Expert], folder: Path
) -> tuple[CheckedBundle, list[CheckedBundle]]:
    """Bundles of a base and experts."""
    base = seal_base(decoder, folder / "base")
    return base, [
        seal_expert(expert, base, f"expert-{n}", folder / f"e{n}") for n, expert in enumerate(experts)
    ]


def served_logits(base: CheckedBundle, experts: list[CheckedBundle], ids: tuple[int, ...], k: int) -> Any:
    """What the marketplace computes."""
    bank = ExpertBank.open(base.digest, base.folder)
    for bundle in experts:
        bank.add_folder(bundle.digest, bundle.folder)
    return forward_logits(bank, ids, [bundle.digest for bundle in experts], k)


def opened_logits(folder: Path, ids: tuple[int, ...]) -> Any:
    """What transformers computes with the folder."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("family", ["olmo2", "llama", "olmoe"])
@pytest.mark.parametrize("kinds", [(), ("full",), EXPERT_KINDS])
def test_an_exact_export_opens_with_equal_logits(family: Any, kinds: tuple[Any, ...], tmp_path: Path) -> None:
    """Of every family and with every kind of expert folded in: logits within 1e-4."""
    decoder = random_decoder(tiny_shape(family=family, renormalise=family == "llama"), seed=3)
    experts = [plain_expert(decoder, 7 + n, kind=kind) for n, kind in enumerate(kinds)]
    base, bundles = sealed(decoder, experts, tmp_path)
    top_k = max(1, len(kinds) - 1)
    report = export_composition(base, bundles, tmp_path / "out", TERMS, top_k=top_k, shard_bytes=1 << 14)
    assert report.lost == ()
    assert report.difference is None
    assert report.experts == tuple(sorted(bundle.digest for bundle in bundles))
    ids = prompt(5, 15)
    theirs = opened_logits(tmp_path / "out", ids)
    ours = served_logits(base, bundles, ids, top_k)
    assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("w1 w2")["input_ids"] == [1, 2]
    assert tokenizer.eos_token == "<|endoftext|>"
    assert set(report.files) == {path.name for path in (tmp_path / "out").iterdir()}


def test_equal_members_give_equal_folders_whatever_their_order(tmp_path: Path) -> None:
    """Every file of the folder is the same, byte for byte."""
    decoder = random_decoder(tiny_shape(), seed=3)
    base, bundles = sealed(decoder, [plain_expert(decoder, n) for n in range(3)], tmp_path)
    seen: list[TransferProgress] = []
    for name, order in (("a", bundles), ("b", bundles[::-1])):
        export_composition(base, order, tmp_path / name, TERMS, top_k=2, on_progress=seen.append)
    assert {moment.phase for moment in seen} == {"weights"}
    assert seen[-1].done_bytes == seen[-1].total_bytes > 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("options", "reason"), [({"gated": True}, "domain gates"), ({"gated": False}, "bias below 0")]
)
def test_what_cannot_be_held_is_refused_by_name_and_measured_when_asked(
    options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """A strict export names gate and bias; an approximate one writes the true difference into the card."""
    decoder = random_decoder(tiny_shape(), seed=3)
    expert = random_expert(decoder, 5, noise=0.3, **options)
    base, bundles = sealed(decoder, [expert], tmp_path)
    with pytest.raises(ExportNotExact, match=reason) as caught:
        export_composition(base, bundles, tmp_path / "out", TERMS, top_k=2)
    assert reason in caught.value.facts["reasons"][0]
    assert not (tmp_path / "out").exists()
    with pytest.raises(ExportNotExact, match="pass public documents"):
        export_composition(base, bundles, tmp_path / "out", TERMS, top_k=2, approximate=True)
    report = export_composition(
        base, bundles, tmp_path / "out", TERMS, top_k=2, approximate=True, documents=TEXT
    )
    assert report.lost[0][0] == bundles[0].digest
    assert report.difference is not None
    worst = 0.0
    for ids in ((0, 1, 2, 3, 4, 5, 6, 7), (0, 9, 8, 7)):
        theirs, ours = opened_logits(tmp_path / "out", ids), served_logits(base, bundles, ids, 2)
        worst = max(worst, float((theirs - ours).abs().max()))
    assert worst > 1e-3
    assert report.difference.max_logit == pytest.approx(worst, abs=1e-4)
    assert report.difference.mean_kl_nats > 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert reason in card
    assert f"{report.difference.bits_per_byte_folder:.4f}" in card
    assert json.loads((tmp_path / "out" / "composition.json").read_text())["exact"] is False


def test_a_bias_of_zero_is_no_loss(tmp_path: Path) -> None:
    """It changes no number, so the export is exact; a gate, however open, takes part in sharing."""
    decoder = random_decoder(tiny_shape(), seed=3)
    expert = plain_expert(decoder, 5)
    base, bundles = sealed(decoder, [expert], tmp_path)
    export_composition(base, bundles, tmp_path / "out", TERMS, top_k=2)
    ids = prompt(5, 15)
    assert torch.allclose(
        opened_logits(tmp_path / "out", ids), served_logits(base, bundles, ids, 2), atol=1e-4
    )
    expert.add_gates()
    for layer in range(decoder.shape.n_layers):
        gate = expert.layer(layer).gate
        assert gate is not None
        torch.nn.init.constant_(gate.bias, 1e3)
    base, bundles = sealed(decoder, [expert], tmp_path / "gated")
    with pytest.raises(ExportNotExact):
        export_composition(base, bundles, tmp_path / "gated-out", TERMS, top_k=2)


def test_router_rows_stay_fp32_where_bf16_would_round_them(tmp_path: Path) -> None:
    """The file keeps fp32 rows beside bf16 weights and the report says what opening in bf16 does."""
    decoder = random_decoder(tiny_shape(), seed=3)
    experts = [plain_expert(decoder, 5)]
    for module in (decoder, *experts):
        in_bfloat16(module)
    base, bundles = sealed(decoder, experts, tmp_path)
    report = export_composition(base, bundles, tmp_path / "out", TERMS, top_k=2)
    assert "float32" in report.notes[0]
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.get_tensor("model.layers.0.mlp.gate.weight").dtype == torch.float32
        assert file.get_tensor("model.layers.0.mlp.experts.0.up_proj.weight").dtype == torch.bfloat16
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16
    wide = served_logits(base, bundles, prompt(5, 15), 2)
    assert (opened_logits(tmp_path / "out", prompt(5, 15)) - wide.float()).abs().max() < 0.5


def test_folding_that_would_round_is_named(tmp_path: Path) -> None:
    """A low-rank change of bf16 weights cannot be merged exactly."""
    decoder = random_decoder(tiny_shape(), seed=3)
    in_bfloat16(decoder)
    expert = plain_expert(decoder, 5, kind="low_rank")
    base, bundles = sealed(decoder, [expert], tmp_path)
    with pytest.raises(ExportNotExact, match="rounded to bfloat16"):
        export_composition(base, bundles, tmp_path / "out", TERMS, top_k=2)


def test_a_llama_base_that_does_not_renormalise_has_no_exact_layout_below_all_experts(tmp_path: Path) -> None:
    """Mixtral always divides by the sum: k = n is exact, fewer are refused."""
    decoder = random_decoder(tiny_shape(family="llama"), seed=3)
    base, bundles = sealed(decoder, [plain_expert(decoder, n) for n in range(2)], tmp_path)
    with pytest.raises(ExportNotExact, match="divides the weights"):
        export_composition(base, bundles, tmp_path / "out", TERMS, top_k=2)
    export_composition(base, bundles, tmp_path / "out", TERMS, top_k=3)
    ids = prompt(5, 15)
    assert torch.allclose(
        opened_logits(tmp_path / "out", ids), served_logits(base, bundles, ids, 3), atol=1e-4
    )


def test_the_card_names_members_licenses_and_obligations(tmp_path: Path) -> None:
    """Words of others cannot break its table, and every member stands with its digest."""
    decoder = random_decoder(tiny_shape(), seed=3)
    base, bundles = sealed(decoder, [plain_expert(decoder, 5)], tmp_path)
    stated = MemberTerms(license="CC-BY-4.0", obligations=("Name Acme.\n| <script>",))
    terms = ExportTerms(title="Club", members={bundles[0].digest: stated}, notes=("Taken by club.",))
    export_composition(base, bundles, tmp_path / "out", terms, top_k=2)
    card = (tmp_path / "out" / "README.md").read_text()
    for word in (base.digest, bundles[0].digest, "CC-BY-4.0", "Apache-2.0", "Taken by club.", "recall"):
        assert word in card
    assert "expert-0: Name Acme. \\| &lt;script>" in card


def test_strangers_and_full_folders_are_refused(tmp_path: Path) -> None:
    """An expert of another base does not stand in the folder, and nothing is overwritten."""
    decoder, other = (random_decoder(tiny_shape(), seed=seed) for seed in (3, 4))
    base, _ = sealed(decoder, [], tmp_path / "a")
    _, strangers = sealed(other, [plain_expert(other, 5)], tmp_path / "b")
    with pytest.raises(BundleWrongBase):
        export_composition(base, strangers, tmp_path / "out", TERMS, top_k=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ModelFolderRefused):
        export_composition(base, [], tmp_path / "out", TERMS, top_k=1)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"

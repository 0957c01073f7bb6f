# SPDX-License-Identifier: Apache-2.0
"""Model folders as bundles: split against one base, byte for byte, from every form of folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_builders import ARCHITECTURES, MOE, bring_in, imported_bank, random_model, save_folder, terms
from safetensors.torch import load_file, save_file
from tensor_builders import prompt
from tokenizers import Tokenizer

from model_core.errors import ModelFolderRefused, SharedPartDiffers, TensorsNotFinite, TokenizerInvalid
from model_core.interop.exporting import ExportTerms, export_composition
from model_core.interop.importing import ImportResult, import_folder
from model_core.interop.progress import TransferProgress
from model_core.network.bank import forward_logits
from model_core.packing.bundle import check_bundle
from model_core.packing.manifest import BaseManifest
from model_core.text.documents import Document

MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2}


def names_of(result: ImportResult) -> list[str]:
    """Names of the experts."""
    return [bundle.manifest.name for bundle in result.experts]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_out_and_in_again_is_byte_identical(architecture: str, dtype: Any, tmp_path: Path) -> None:
    """Base and experts have the same bytes and digests, and a second way out the same files."""
    model = random_model(architecture, 3).to(dtype)
    first = bring_in(model, tmp_path / "one", public_documents=[Document(id="a", text="w1 w2")])
    base, experts = first.base, list(first.experts)
    assert {
        tensor.dtype for name, tensor in load_file(base.weights_path).items() if "router" not in name
    } == {dtype}
    title = ExportTerms(title="x")
    out = tmp_path / "out"
    report = export_composition(base, experts, out, title, top_k=first.layout.top_k, shard_bytes=900)
    assert (out / "model.safetensors.index.json").exists()
    _assert_unchanged(tmp_path / "one" / "theirs", out)
    assert (out / "tokenizer.json").read_bytes() == (base.folder / "tokenizer.json").read_bytes()
    by_digest = {bundle.digest: bundle.manifest.name for bundle in experts}
    second = import_folder(
        out,
        tmp_path / "two",
        terms(
            expert_names=[by_digest[digest] for digest in report.experts],
            public_documents=[Document(id="a", text="w1 w2")],
        ),
    )
    assert second.base.digest == base.digest
    assert {bundle.digest for bundle in second.experts} == {bundle.digest for bundle in experts}
    assert second.layout.top_k == first.layout.top_k
    export_composition(
        second.base, second.experts, tmp_path / "again", title, top_k=first.layout.top_k, shard_bytes=900
    )
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def _assert_unchanged(theirs: Path, out: Path) -> None:
    """Names are those that came, and so is every byte outside routers and experts that moved."""
    came, left = (
        {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
        for folder in (theirs, out)
    )
    assert came.keys() == left.keys()
    for name, tensor in came.items():
        if ".gate.weight" not in name and (".experts." not in name or ".experts.0." in name):
            assert torch.equal(tensor, left[name]), name
            assert tensor.dtype == left[name].dtype


@pytest.mark.parametrize("architecture", MOE)
def test_folders_that_share_a_trunk_split_against_one_base(architecture: str, tmp_path: Path) -> None:
    """All experts, two of them, tuned rows, or none: with canonical rows the base is always the same."""
    count = "num_local_experts" if architecture.startswith("Mixtral") else "num_experts"
    sizes = {count: 4, "num_experts_per_tok": 2}
    whole = random_model(architecture, 5, **sizes)
    pair = random_model(architecture, 5, **(sizes | {count: 2}))
    tuned = random_model(architecture, 5, **sizes)
    shift = torch.randn(whole.config.hidden_size)
    with torch.no_grad():
        state = whole.state_dict()
        pair.load_state_dict(
            {n: t[[0, 2]] if ".experts." in n or "mlp.gate." in n else t for n, t in state.items()}
        )
        tuned.load_state_dict({n: t + shift if "mlp.gate." in n else t for n, t in state.items()})
    first = bring_in(whole, tmp_path / "whole", expert_names=["a", "b", "c"])
    for name, model, found in (("pair", pair, ["b"]), ("tuned", tuned, ["a", "b", "c"])):
        folder = save_folder(model, tmp_path / name)
        alone = import_folder(folder, tmp_path / f"{name}-alone", terms(expert_names=found))
        assert alone.base.digest == first.base.digest
        joined = import_folder(
            folder, tmp_path / f"{name}-known", terms(expert_names=found), known_base=first.base.folder
        )
        assert joined.base.folder == first.base.folder
        assert not (tmp_path / f"{name}-known" / "base").exists()
    assert alone.experts[1].manifest.base_digest == first.base.digest
    same = {bundle.manifest.name: bundle.digest for bundle in first.experts}
    assert (
        import_folder(
            tmp_path / "pair", tmp_path / "p", terms(expert_names=["b"]), known_base=first.base.folder
        )
        .experts[0]
        .digest
        == same["b"]
    )


def test_a_dense_folder_and_a_mixture_share_a_base(tmp_path: Path) -> None:
    """An OLMo-2 model and a FlexOlmo model of the same trunk and public expert are one base."""
    sizes = {"num_hidden_layers": 2, "rms_norm_eps": 1e-6}
    mixture = random_model("FlexOlmoForCausalLM", 5, **(MIXTURE | sizes))
    config = {n: getattr(mixture.config, n) for n in _SAME} | sizes
    config["head_dim"] = mixture.model.layers[0].self_attn.head_dim
    dense = random_model("Olmo2ForCausalLM", 5, **config)
    state = mixture.state_dict()
    mine = {}
    for name in dense.state_dict():
        if ".mlp." not in name:
            mine[name] = state[name]
            continue
        at, part = name.split(".mlp.")[0] + ".mlp.experts.", name.split(".mlp.")[1].split("_")[0]
        gate, up = state[at + "gate_up_proj"][0].chunk(2)
        mine[name] = {"gate": gate, "up": up, "down": state[at + "down_proj"][0]}[part]
    dense.load_state_dict(mine)
    base = bring_in(dense, tmp_path / "dense").base
    folder = save_folder(mixture, tmp_path / "mixture")
    assert len(import_folder(folder, tmp_path / "in", terms(), known_base=base.folder).experts) == 3


_SAME = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rope_parameters",
    "tie_word_embeddings",
)


@pytest.mark.parametrize(
    ("tamper", "what"),
    [
        ("model.layers.1.self_attn.k_proj.weight", "model.layers.1.self_attn.k_proj.weight"),
        ("model.layers.0.mlp.experts.0.up_proj.weight", "model.layers.0.mlp.experts.0.up_proj.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("tokenizer.json", "tokenizer.json"),
        ("rms_norm_eps", "norm_eps"),
    ],
)
def test_anything_shared_that_differs_is_named(tamper: str, what: str, tmp_path: Path) -> None:
    """One bit of one shared tensor, the tokenizer or a size: refused by its name, and nothing is left."""
    model = random_model("FlexOlmoForCausalLM", 5, **MIXTURE)
    base = bring_in(model, tmp_path).base
    folder = tmp_path / "theirs"
    if tamper.endswith(".json"):
        (folder / tamper).write_text((folder / tamper).read_text() + "\n")
    elif tamper.startswith("model."):
        tensors = load_file(folder / "model.safetensors")
        flat = tensors[tamper].view(-1).view(torch.int32)
        flat[-1] ^= 1
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {tamper: 1e-3}))
    with pytest.raises(SharedPartDiffers) as caught:
        import_folder(folder, tmp_path / "again", terms(), known_base=base.folder)
    assert caught.value.facts["tensor"] == what
    assert not any((tmp_path / "again").glob("*"))


@pytest.mark.parametrize("architecture", ["OlmoeForCausalLM", "FlexOlmoForCausalLM"])
def test_experts_that_stand_fused_on_disk_are_the_same_experts(architecture: str, tmp_path: Path) -> None:
    """Saved as they are in memory, they give the digests of the split form."""
    model = random_model(architecture, 5, num_experts=3, num_experts_per_tok=2)
    split = bring_in(model, tmp_path)
    folder = tmp_path / "theirs"
    save_file(
        dict(model.state_dict()) if not model.config.tie_word_embeddings else _untied(model), folder / "m"
    )
    (folder / "m").rename(folder / "model.safetensors")
    fused = import_folder(folder, tmp_path / "fused", terms())
    assert fused.base.digest == split.base.digest
    assert [one.digest for one in fused.experts] == [one.digest for one in split.experts]


def _untied(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


def test_shards_give_the_same_digests_as_one_file(tmp_path: Path) -> None:
    """However the weights are cut into files."""
    model = random_model("OlmoeForCausalLM", 5, num_experts=3, num_experts_per_tok=2)
    whole = bring_in(model, tmp_path / "whole")
    folder = save_folder(model, tmp_path / "shards", max_shard_size="4KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    shards = import_folder(folder, tmp_path / "in", terms())
    assert shards.base.digest == whole.base.digest
    assert [one.digest for one in shards.experts] == [one.digest for one in whole.experts]


def test_progress_reaches_the_end_through_named_phases(tmp_path: Path) -> None:
    """Bytes only grow, phases are those that are documented, and the last report is the whole."""
    model = random_model("FlexOlmoForCausalLM", 5, **MIXTURE)
    folder = save_folder(model, tmp_path / "theirs")
    seen: list[TransferProgress] = []
    result = import_folder(folder, tmp_path / "ours", terms(), on_progress=seen.append)
    done = [one.done_bytes for one in seen]
    assert done == sorted(done)
    assert {one.phase for one in seen} == {"base", "check", *(f"expert {name}" for name in names_of(result))}
    assert seen[-1].done_bytes >= 0.95 * seen[-1].total_bytes


def test_an_imported_llama_says_that_it_renormalises(tmp_path: Path) -> None:
    """Without a norm behind the mixture, experts that are left out would weaken the FFN."""
    result = bring_in(random_model("LlamaForCausalLM", 1), tmp_path)
    assert isinstance(result.base.manifest, BaseManifest)
    assert result.base.manifest.shape.renormalise
    assert "divided by their sum" in result.notes[0]


def test_what_stands_in_the_bundle_is_sealed_and_whole(tmp_path: Path) -> None:
    """Bundles pass the check of every bundle, side files included, and calibration text travels."""
    result = bring_in(
        random_model("FlexOlmoForCausalLM", 5, **MIXTURE),
        tmp_path,
        public_documents=[Document(id="a", text="w1 w2")],
        tenant="acme",
        expert_license="CC-BY-4.0",
    )
    base = check_bundle(result.base.folder)
    assert {"tokenizer_config.json", "generation_config.json", "calibration.jsonl"} <= set(
        base.manifest.files
    )
    for bundle in result.experts:
        checked = check_bundle(bundle.folder, expect_digest=bundle.digest)
        assert checked.manifest.data_card.license == "CC-BY-4.0"
    bank = imported_bank(result)
    assert torch.isfinite(forward_logits(bank, prompt(1, 5), [], 1)).all()
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {"base", "experts"}


def _retensor(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Spoils the tensors of a folder."""

    def spoil(folder: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def _reindex(folder: Path, *, to: str, leave_out: int) -> None:
    names = sorted(load_file(folder / "model.safetensors"))[leave_out:]
    index = {"weight_map": dict.fromkeys(names, to)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def _link_out(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").symlink_to("/etc/hostname")


def _add_token(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["one too many"])
    tokenizer.save(str(folder / "tokenizer.json"))


_NORM, _VALUE = "model.norm.weight", "model.layers.0.self_attn.v_proj.weight"
_SPOILT: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        ModelFolderRefused,
        "pickled",
    ),
    "truncated": (_truncate, ModelFolderRefused, "truncated"),
    "missing tensor": (_retensor(lambda tensors: tensors.pop(_NORM)), ModelFolderRefused, _NORM),
    "unknown tensor": (
        _retensor(lambda tensors: tensors.update({"q_proj.bias": torch.zeros(4)})),
        ModelFolderRefused,
        "q_proj.bias",
    ),
    "wrong shape": (
        _retensor(lambda tensors: tensors.update({_NORM: torch.ones(3)})),
        ModelFolderRefused,
        _NORM,
    ),
    "mixed dtypes": (
        _retensor(lambda tensors: tensors.update({_VALUE: tensors[_VALUE].bfloat16()})),
        ModelFolderRefused,
        "BF16 while the embedding is F32",
    ),
    "integers": (
        _retensor(lambda tensors: tensors.update({_VALUE: tensors[_VALUE].to(torch.int8)})),
        ModelFolderRefused,
        "has dtype I8",
    ),
    "NaN": (_retensor(lambda tensors: tensors[_NORM].fill_(float("nan"))), TensorsNotFinite, "norm.weight"),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        ModelFolderRefused,
        "tokenizer.json",
    ),
    "no end of text": (
        lambda folder: (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "<eos>"}}'),
        TokenizerInvalid,
        "<eos>",
    ),
    "token beyond the rows": (_add_token, ModelFolderRefused, "token ids up to 61"),
    "link out": (_link_out, ModelFolderRefused, "leaves the folder"),
    "index leaves": (
        lambda folder: _reindex(folder, to="../model.safetensors", leave_out=0),
        ModelFolderRefused,
        "not the name of a file",
    ),
    "index lies": (
        lambda folder: _reindex(folder, to="model.safetensors", leave_out=1),
        ModelFolderRefused,
        "does not hold the tensors",
    ),
}


@pytest.mark.parametrize("how", _SPOILT)
def test_a_spoilt_folder_is_refused_and_leaves_nothing(how: str, tmp_path: Path) -> None:
    """Each refusal names what is wrong, and the target stays empty."""
    spoil, error, word = _SPOILT[how]
    folder = save_folder(random_model("Olmo2ForCausalLM", 2), tmp_path / "theirs")
    spoil(folder)
    with pytest.raises(error, match=word):
        import_folder(folder, tmp_path / "out", terms())
    assert not any((tmp_path / "out").glob("*"))


def test_links_into_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    """A snapshot whose files are links to the blobs beside it imports as the plain folder does."""
    plain = bring_in(random_model("LlamaForCausalLM", 2), tmp_path)
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted((tmp_path / "theirs").iterdir())):
        path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", f"{number:064x}"))
    assert import_folder(snapshot, tmp_path / "again", terms()).base.digest == plain.base.digest

# SPDX-License-Identifier: Apache-2.0
"""Tiny random transformers models of every layout that comes in and goes out, and their folders."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from model_core.interop.importing import ImportResult, ImportTerms, import_folder
from model_core.network.bank import ExpertBank
from model_core.network.checkpoint import save_decoder, save_expert
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.packing.bundle import CheckedBundle, write_bundle
from model_core.packing.canonical import digest_file, merkle_root
from model_core.packing.keys import generate_key
from model_core.packing.manifest import BaseManifest, DataCard, ExpertManifest

KEY = generate_key()
VOCABULARY = 61
MOE = ("OlmoeForCausalLM", "FlexOlmoForCausalLM", "MixtralForCausalLM")
ARCHITECTURES = ("Olmo2ForCausalLM", "LlamaForCausalLM", *MOE)


def random_settings(architecture: str, seed: int) -> dict[str, Any]:
    """Arguments of a config: odd sizes, grouped keys, given head widths, thetas, k and renormalising."""
    pick = random.Random(f"{architecture}{seed}")
    n_heads = pick.choice([1, 2, 3, 4, 6])
    head_dim = pick.choice([2, 4, 6, 8])
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": n_heads * head_dim * pick.choice([1, 1, 2]),
        "intermediate_size": pick.choice([7, 16, 33]),
        "num_hidden_layers": pick.randint(1, 3),
        "num_attention_heads": n_heads,
        "num_key_value_heads": pick.choice([n for n in range(1, n_heads + 1) if n_heads % n == 0]),
        "max_position_embeddings": pick.choice([48, 64]),
        "rms_norm_eps": pick.choice([1e-6, 1e-5]),
        "rope_parameters": {"rope_type": "default", "rope_theta": pick.choice([100.0, 1e4, 5e5])},
        "tie_word_embeddings": pick.random() < 0.4,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if architecture != "OlmoeForCausalLM" and pick.random() < 0.5:
        settings["head_dim"] = head_dim
    if architecture in MOE:
        n_experts = pick.randint(1, 6)
        settings["num_local_experts" if architecture.startswith("Mixtral") else "num_experts"] = n_experts
        settings["num_experts_per_tok"] = pick.randint(1, n_experts)
        if not architecture.startswith("Mixtral"):
            settings["norm_topk_prob"] = pick.random() < 0.5
    if architecture == "OlmoeForCausalLM":
        settings["clip_qkv"] = pick.choice([None, 0.4])
    return settings


def random_model(architecture: str, seed: int, **changes: Any) -> Any:
    """A model with random weights of a healthy scale (with tiny ones epsilon decides what norms do)."""
    config = getattr(transformers, architecture.replace("ForCausalLM", "Config"))(
        **(random_settings(architecture, seed) | changes)
    )
    model = getattr(transformers, architecture)(config)
    if architecture in MOE:
        model.set_experts_implementation("eager")  # the grouped kernel wants strides that odd sizes lack
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1.0 + 0.1 * noise if parameter.dim() == 1 else 0.3 * noise)
    return model.eval()


def word_tokenizer() -> Tokenizer:
    """Words w1 to w60, and the end of text as id 0."""
    words = {"<|endoftext|>": 0} | {f"w{number}": number for number in range(1, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def save_folder(model: Any, folder: Path, **options: Any) -> Path:
    """Saves a model and a tokenizer as transformers does."""
    model.save_pretrained(folder, **options)
    word_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>", "bos_token": None, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def terms(**changes: Any) -> ImportTerms:
    """What the tests state about a folder."""
    fields: dict[str, Any] = {
        "name": "foreign",
        "license": "Apache-2.0",
        "trained_on": "Nothing: random weights for a test.",
        "owner_key": KEY,
        "created_at_us": 1,
        "code_version": "test",
    }
    return ImportTerms(**(fields | changes))


def imported_bank(result: ImportResult) -> ExpertBank:
    """A bank with everything that an import made."""
    bank = ExpertBank.open(result.base.digest, result.base.folder)
    for bundle in result.experts:
        bank.add_folder(bundle.digest, bundle.folder)
    return bank


def bring_in(model: Any, folder: Path, **changes: Any) -> ImportResult:
    """Saves a model and imports its folder."""
    return import_folder(save_folder(model, folder / "theirs"), folder / "ours", terms(**changes))


def seal_base(decoder: Decoder, folder: Path) -> CheckedBundle:
    """A sealed base bundle of a decoder with the word tokenizer."""
    folder.mkdir(parents=True)
    save_decoder(decoder, folder / "base.safetensors")
    word_tokenizer().save(str(folder / "tokenizer.json"))
    files = {name: folder / name for name in ("base.safetensors", "tokenizer.json")}
    digests = {name: digest_file(path) for name, path in files.items()}
    manifest = BaseManifest(
        name="ours",
        shape=decoder.shape,
        tokenizer_digest=digests["tokenizer.json"],
        weights_digest=digests["base.safetensors"],
        license="Apache-2.0",
        trained_on="Nothing.",
        created_at_us=1,
        code_version="test",
        files=digests,
    )
    return write_bundle(folder / "bundle", manifest, dict(files), KEY)


def seal_expert(expert: Expert, base: CheckedBundle, name: str, folder: Path) -> CheckedBundle:
    """A sealed bundle of an expert of any kind."""
    folder.mkdir(parents=True)
    path = folder / "expert.safetensors"
    save_expert(expert, path)
    form, manifest = expert.form, base.manifest
    assert isinstance(manifest, BaseManifest)
    (folder / "metrics.jsonl").write_bytes(b"")
    files = {"expert.safetensors": path, "metrics.jsonl": folder / "metrics.jsonl"}
    slip = ExpertManifest(
        name=name,
        tenant="acme",
        base_digest=base.digest,
        tokenizer_digest=manifest.tokenizer_digest,
        expert_kind=form.kind,
        d_ffn=form.d_ffn,
        rank=form.rank,
        pieces=form.pieces,
        gated=expert.gated,
        n_layers=manifest.shape.n_layers,
        d_model=manifest.shape.d_model,
        recipe={},
        seeds={},
        data_card=DataCard(documents=0, text_bytes=0, license="CC-BY-4.0", merkle_root=merkle_root([])),
        metrics={},
        files={name: digest_file(path) for name, path in files.items()},
        created_at_us=1,
        code_version="test",
        torch_version="test",
        threads=1,
    )
    return write_bundle(folder / "bundle", slip, dict(files), KEY)

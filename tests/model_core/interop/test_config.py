# SPDX-License-Identifier: Apache-2.0
"""Configs: what is read from them, class defaults included, and refusals that name field and value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hf_builders import ARCHITECTURES, random_settings

from model_core.errors import ConfigUnsupported, ModelFolderRefused
from model_core.interop.architectures import ARCHITECTURES as KNOWN
from model_core.interop.config import parse_config, read_config, write_config

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def fields_of(architecture: str, **more: Any) -> dict[str, Any]:
    """The smallest config of an architecture: everything that has a default is left out."""
    return {"architectures": [architecture], **SIZES, **more}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_absent_fields_have_the_defaults_of_the_reference(architecture: str) -> None:
    """As transformers fills them in: positions, epsilon, theta, heads, experts and k (FlexOlmo: 5 of 7)."""
    ours = parse_config(fields_of(architecture, num_key_value_heads=2))
    theirs = getattr(transformers, architecture.replace("ForCausalLM", "Config"))(
        **SIZES, num_key_value_heads=2
    )
    shape = ours.shape
    assert shape.max_positions == theirs.max_position_embeddings
    assert shape.norm_eps == theirs.rms_norm_eps
    assert shape.rope_theta == theirs.rope_parameters["rope_theta"]
    assert shape.tie_embeddings == theirs.tie_word_embeddings
    if ours.architecture.moe:
        assert ours.n_experts == theirs.num_local_experts
        assert ours.top_k == theirs.num_experts_per_tok
    if architecture in ("OlmoeForCausalLM", "FlexOlmoForCausalLM"):
        assert shape.renormalise == theirs.norm_topk_prob


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_the_reference_saves_is_read_and_what_is_written_the_reference_reads(
    architecture: str, seed: int, tmp_path: Path
) -> None:
    """Both ways between our layout and the reference's config class."""
    kind = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
    settings = random_settings(architecture, seed)
    kind(**settings, architectures=[architecture]).save_pretrained(tmp_path)
    ours = read_config(tmp_path)
    (tmp_path / "config.json").write_bytes(write_config(ours, dtype="bfloat16"))
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    width = settings["hidden_size"] // settings["num_attention_heads"]
    for field, value in settings.items():
        assert getattr(again, field, width) == value, field
    assert read_config(tmp_path) == ours


@pytest.mark.parametrize("renormalise", [False, True])
def test_a_dense_base_keeps_how_experts_that_join_later_are_weighed(
    renormalise: bool, tmp_path: Path
) -> None:
    """Also in a layout whose own class knows no experts, and opens the folder all the same."""
    ours = parse_config(fields_of("Olmo2ForCausalLM", norm_topk_prob=renormalise))
    (tmp_path / "config.json").write_bytes(write_config(ours, dtype="float32"))
    assert transformers.AutoConfig.from_pretrained(tmp_path).model_type == "olmo2"
    assert read_config(tmp_path).shape.renormalise is renormalise


@pytest.mark.parametrize(
    ("rope", "theta"),
    [
        ({"rope_theta": 123.0}, 123.0),
        ({"rope_theta": 123, "rope_scaling": None}, 123.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.5}}, 7.5),
        ({"rope_theta": 123.0, "rope_parameters": {"rope_type": "default", "rope_theta": 7.5}}, 7.5),
        ({"rope_theta": None, "rope_scaling": {"type": "default"}}, 10_000.0),
    ],
)
def test_thetas_are_read_in_the_old_form_and_the_new(rope: dict[str, Any], theta: float) -> None:
    """``rope_theta`` and ``rope_scaling``, or ``rope_parameters``."""
    assert parse_config(fields_of("LlamaForCausalLM", **rope)).shape.rope_theta == theta


@pytest.mark.parametrize(
    ("architecture", "field", "value"),
    [
        ("LlamaForCausalLM", "rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("LlamaForCausalLM", "rope_scaling", {"type": "linear", "factor": 2.0}),
        ("LlamaForCausalLM", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
        ("LlamaForCausalLM", "rope_parameters", {"full_attention": {"rope_type": "default"}}),
        ("LlamaForCausalLM", "rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("LlamaForCausalLM", "rope_theta", -1),
        ("LlamaForCausalLM", "attention_bias", True),
        ("LlamaForCausalLM", "mlp_bias", True),
        ("LlamaForCausalLM", "hidden_act", "gelu"),
        ("LlamaForCausalLM", "pretraining_tp", 2),
        ("LlamaForCausalLM", "quantization_config", {"quant_method": "gptq"}),
        ("LlamaForCausalLM", "vocab_size", None),
        ("LlamaForCausalLM", "hidden_size", 25),
        ("LlamaForCausalLM", "head_dim", 3),
        ("LlamaForCausalLM", "num_key_value_heads", 3),
        ("LlamaForCausalLM", "max_position_embeddings", -1),
        ("LlamaForCausalLM", "rms_norm_eps", "1e-5"),
        ("LlamaForCausalLM", "tie_word_embeddings", 1),
        ("LlamaForCausalLM", "clip_qkv", 8.0),
        ("LlamaForCausalLM", "model_type", "mistral"),
        ("LlamaForCausalLM", "auto_map", {"AutoModelForCausalLM": "their_code.Model"}),
        ("MixtralForCausalLM", "sliding_window", 4096),
        ("FlexOlmoForCausalLM", "num_experts_per_tok", 8),
        ("OlmoeForCausalLM", "head_dim", 20),
        ("Qwen2ForCausalLM", "architectures", ["Qwen2ForCausalLM"]),
        ("LlamaForCausalLM", "architectures", None),
    ],
)
def test_what_is_not_computed_is_refused_with_field_and_value(
    architecture: str, field: str, value: Any
) -> None:
    """The error names the field, shows its value, and never loads something else instead."""
    with pytest.raises(ConfigUnsupported) as caught:
        parse_config(fields_of(architecture) | {"num_key_value_heads": 1} | {field: value})
    assert caught.value.facts["field"] == field
    assert caught.value.facts["value"] == json.dumps(value)
    assert field in caught.value.sentence


def test_positions_may_be_stated_where_the_config_has_none() -> None:
    """Some converters write -1; whoever imports says how many positions to serve."""
    fields = fields_of("FlexOlmoForCausalLM", max_position_embeddings=-1)
    with pytest.raises(ConfigUnsupported, match="pass the number of positions"):
        parse_config(fields)
    assert parse_config(fields, max_positions=4096).shape.max_positions == 4096


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    """No file, no JSON, or no object: a sentence and not a traceback."""
    for body in (None, b"{", b"[]"):
        if body is not None:
            (tmp_path / "config.json").write_bytes(body)
        with pytest.raises(ModelFolderRefused, match=r"config\.json"):
            read_config(tmp_path)


def test_every_architecture_that_is_promised_is_known() -> None:
    """The four families, and the layout that Llama mixtures leave in."""
    assert set(KNOWN) == set(ARCHITECTURES)

# SPDX-License-Identifier: Apache-2.0
"""The layouts of the Hugging Face world that are understood, and what each assumes where a field is absent.

The defaults are those of the config classes in transformers, since they are what whoever saved a file relied
on. Knows nothing of files and tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model_core.packing.manifest import Family


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """One layout of the Hugging Face world.

    Attributes:
        name: class name, as in the config's ``architectures``.
        model_type: as in the config.
        family: of our decoder.
        experts_field: config field with the number of experts; empty for dense models.
        defaults: what the config class assumes where a field is absent.
    """

    name: str
    model_type: str
    family: Family
    experts_field: str
    defaults: Mapping[str, Any]

    @property
    def moe(self) -> bool:
        """Whether each layer has a router and experts."""
        return bool(self.experts_field)


def _defaults(**more: Any) -> dict[str, Any]:
    common = {
        "hidden_act": "silu",
        "num_key_value_heads": None,
        "head_dim": None,
        "tie_word_embeddings": False,
        "rope_theta": 10_000.0,
        "clip_qkv": None,
        "norm_topk_prob": False,
    }
    return common | more


OLMO2 = Architecture(
    name="Olmo2ForCausalLM",
    model_type="olmo2",
    family="olmo2",
    experts_field="",
    defaults=_defaults(max_position_embeddings=2048, rms_norm_eps=1e-5),
)
LLAMA = Architecture(
    name="LlamaForCausalLM",
    model_type="llama",
    family="llama",
    experts_field="",
    defaults=_defaults(max_position_embeddings=2048, rms_norm_eps=1e-6),
)
OLMOE = Architecture(
    name="OlmoeForCausalLM",
    model_type="olmoe",
    family="olmoe",
    experts_field="num_experts",
    defaults=_defaults(
        max_position_embeddings=4096, rms_norm_eps=1e-5, num_experts=64, num_experts_per_tok=8
    ),
)
FLEX_OLMO = Architecture(
    name="FlexOlmoForCausalLM",
    model_type="flex_olmo",
    family="olmo2",
    experts_field="num_experts",
    defaults=_defaults(
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=500_000.0,
        num_experts=7,
        num_experts_per_tok=5,
    ),
)
MIXTRAL = Architecture(
    name="MixtralForCausalLM",
    model_type="mixtral",
    family="llama",
    experts_field="num_local_experts",
    defaults=_defaults(
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        num_key_value_heads=8,
        num_local_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    ),
)
ARCHITECTURES = {one.name: one for one in (OLMO2, LLAMA, OLMOE, FLEX_OLMO, MIXTRAL)}

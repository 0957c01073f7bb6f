# SPDX-License-Identifier: Apache-2.0
"""Makes a base and experts that know nothing worth saying, but that are really routed to.

An expert is the public network with noise on it and router rows drawn at random, so every row of a batch
chooses differently and the greedy answer of every set of experts is another one. Knows no marketplace.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from model_core.network.checkpoint import load_base_folder, save_expert
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.packing.bundle import CheckedBundle, countersign_bundle, write_bundle
from model_core.packing.canonical import digest_file, merkle_root
from model_core.packing.keys import SigningKey
from model_core.packing.manifest import (
    EXPERT_WEIGHTS_FILE,
    METRICS_FILE,
    DataCard,
    ExpertManifest,
    ModelShape,
)
from model_core.text.documents import Document
from model_core.text.tokenizer import TextTokenizer
from model_core.training.base import write_base
from model_core.training.conversions import to_int8
from model_core.training.versions import code_version

VOCABULARY = 384


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How large the models are.

    Attributes:
        n_layers: of the base.
        d_model: width.
        d_ffn: inner width of every network.
        max_positions: longest context in tokens.
        bf16: whether weights are kept in bf16 instead of fp32.
        int8: whether experts' matrices are rounded to int8.
    """

    n_layers: int = 2
    d_model: int = 64
    d_ffn: int = 128
    max_positions: int = 128
    bf16: bool = False
    int8: bool = False

    @property
    def shape(self) -> ModelShape:
        """The base's shape."""
        return ModelShape(
            n_layers=self.n_layers,
            d_model=self.d_model,
            n_heads=max(2, self.d_model // 64),
            n_kv_heads=max(2, self.d_model // 64),
            d_ffn=self.d_ffn,
            vocab_size=VOCABULARY,
            max_positions=self.max_positions,
            rope_theta=10_000.0,
            norm_eps=1e-6,
        )


#: Half a million parameters: an answer of 64 tokens takes well under a second on one core.
SMALL = Sizes()


def make_base(folder: Path, scratch: Path, sizes: Sizes, key: SigningKey) -> CheckedBundle:
    """Writes a base that was never trained.

    Args:
        folder: of the bundle; new.
        scratch: for files on the way.
        sizes: of the model.
        key: the platform's.
    """
    text = (Path(os.__file__).parent / "textwrap.py").read_text(encoding="utf-8")
    tokenizer = TextTokenizer.train([text], vocab_size=VOCABULARY)
    decoder = Decoder(sizes.shape)
    # Wide enough that the likeliest token leads by more than rounding can move it.
    decoder.init_weights(seed=1, std=0.15 * (64 / sizes.d_model) ** 0.5)
    with torch.no_grad():
        if decoder.lm_head is not None:
            decoder.lm_head.weight[tokenizer.end_of_text_id] = 0.0
        if sizes.bf16:
            decoder.to(torch.bfloat16)
    return write_base(
        folder,
        decoder,
        tokenizer,
        [Document(id="one", text=text[:1500])],
        name="storm",
        license="Apache-2.0",
        trained_on="Nothing.",
        created_at_us=time.time_ns() // 1000,
        code_version=code_version(),
        owner_key=key,
        staging=scratch,
    )


def make_expert(
    folder: Path,
    base: CheckedBundle,
    *,
    name: str,
    tenant: str,
    seed: int,
    keys: tuple[SigningKey, SigningKey],
    int8: bool = False,
) -> CheckedBundle:
    """Writes an admitted expert.

    Args:
        folder: of the bundle; new.
        base: what it stands beside.
        name: the expert's.
        tenant: its owner.
        seed: makes it differ from others.
        keys: the owner's and admission's.
        int8: whether its matrices are rounded to int8.
    """
    manifest, decoder = load_base_folder(base.folder)
    shape = manifest.shape
    expert = Expert(n_layers=shape.n_layers, d_model=shape.d_model, d_ffn=shape.d_ffn)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for index in range(shape.n_layers):
            layer, public = expert.layer(index), decoder.layer(index).ffn
            for own, given in zip(layer.ffn.parameters(), public.parameters(), strict=True):
                noise = torch.randn(own.shape, generator=chance) * float(given.float().std())
                own.copy_(given.float() + noise)
            layer.router.row.copy_(torch.randn(shape.d_model, generator=chance) * 0.5)
    if int8:
        expert = to_int8(expert)
    elif decoder.embed.weight.dtype == torch.bfloat16:
        for index in range(shape.n_layers):
            expert.layer(index).ffn.to(torch.bfloat16)
    weights = folder.parent / f"{folder.name}.safetensors"
    save_expert(expert, weights)
    metrics = folder.parent / f"{folder.name}.jsonl"
    metrics.write_bytes(b'{"loss":1.0,"step":1}\n')
    files = {EXPERT_WEIGHTS_FILE: weights, METRICS_FILE: metrics}
    packing_slip = ExpertManifest(
        name=name,
        tenant=tenant,
        base_digest=base.digest,
        tokenizer_digest=manifest.tokenizer_digest,
        d_ffn=shape.d_ffn,
        expert_kind=expert.kind,
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        gated=False,
        recipe={"steps": 1},
        seeds={"data": seed},
        data_card=DataCard(
            documents=1, text_bytes=1, license="CC0-1.0", merkle_root=merkle_root([name.encode()])
        ),
        metrics={"bits_per_byte": 1.0},
        calibration={"bias": 0.0},
        files={file: digest_file(path) for file, path in files.items()},
        created_at_us=time.time_ns() // 1000,
        code_version=code_version(),
        torch_version=torch.__version__.split("+")[0],
        threads=1,
    )
    write_bundle(folder, packing_slip, files, keys[0], take=True)
    return countersign_bundle(folder, keys[1])

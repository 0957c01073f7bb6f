# SPDX-License-Identifier: Apache-2.0
"""Texts of two dialects and a tiny base bundle of fresh weights, for the tests of training."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import torch

from model_core.network.decoder import Decoder
from model_core.packing.bundle import CheckedBundle
from model_core.packing.keys import generate_key
from model_core.packing.manifest import ModelShape
from model_core.text.documents import Document
from model_core.text.tokenizer import TextTokenizer
from model_core.training.base import draw_weights, write_base
from model_core.training.expert_recipe import ExpertRecipe

_PUBLIC = re.findall(r"\w+", "the river ran past a quiet town where people read old books in evening light")
_OWN = re.findall(
    r"\w+", "int float return void if else while struct const auto static template class public for"
)


def texts(kind: str, count: int, *, words: int = 60, seed: int = 0) -> tuple[Document, ...]:
    """Documents of one dialect; the same arguments give the same documents."""
    numbers = random.Random(f"{kind}{seed}")
    vocabulary = _PUBLIC if kind == "public" else _OWN
    joiner = " " if kind == "public" else "; "
    return tuple(
        Document(id=f"{kind}/{index}", text=joiner.join(numbers.choices(vocabulary, k=words)) + "\n")
        for index in range(count)
    )


def tiny_recipe(**changes: Any) -> ExpertRecipe:
    """Thirty small steps in fp32, which teach a tiny expert its dialect."""
    fields: dict[str, Any] = {
        "steps": 30,
        "batch_rows": 4,
        "sequence_tokens": 32,
        "learning_rate": 5e-3,
        "precision": "fp32",
        "fit_tokens": 64,
        "gate_positions": 12,
    }
    return ExpertRecipe(**(fields | changes))


def tiny_tokenizer() -> TextTokenizer:
    """A vocabulary of 300 over both dialects."""
    return TextTokenizer.train(
        [item.text for item in (*texts("public", 30), *texts("own", 30))], vocab_size=300
    )


def tiny_shape() -> ModelShape:
    """Two layers, thirty-two wide."""
    return ModelShape(
        n_layers=2,
        d_model=32,
        n_heads=2,
        n_kv_heads=2,
        d_ffn=48,
        vocab_size=300,
        max_positions=128,
        rope_theta=10_000.0,
        norm_eps=1e-6,
    )


def tiny_decoder(seed: int = 1) -> Decoder:
    """A decoder with fresh weights."""
    decoder = Decoder(tiny_shape())
    draw_weights(decoder, seed=seed)
    return decoder.requires_grad_(False)


def tiny_base(folder: Path) -> CheckedBundle:
    """Writes a sealed base bundle of a tiny decoder."""
    return write_base(
        folder / "base",
        tiny_decoder(),
        tiny_tokenizer(),
        texts("public", 12, seed=5),
        name="tiny",
        license="Apache-2.0",
        trained_on="Nothing: fresh weights for a test.",
        created_at_us=1,
        code_version="test",
        owner_key=generate_key(),
        staging=folder / "staging",
    )


def same_tensors(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    """Whether two modules hold the same bytes."""
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

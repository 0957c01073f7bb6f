# SPDX-License-Identifier: Apache-2.0
"""Makes a sealed base so small that a whole training job takes seconds, and text to train on.

What it says is worthless; what matters is that every part of the marketplace treats it like any other.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from model_core.packing.keys import generate_key
from model_core.packing.manifest import ModelShape
from model_core.text.documents import Document, write_documents
from model_core.text.tokenizer import TextTokenizer
from model_core.training.base import pretrain, write_base
from model_core.training.recipe import TrainingRecipe
from model_core.training.versions import code_version

_VOCABULARY = 400
_PIECE_CHARACTERS = 1500
_SHAPE = ModelShape(
    n_layers=2,
    d_model=64,
    n_heads=2,
    n_kv_heads=2,
    d_ffn=128,
    vocab_size=_VOCABULARY,
    max_positions=1024,
    rope_theta=10_000.0,
    norm_eps=1e-6,
)


def make_base(folder: Path, scratch: Path) -> None:
    """Trains the base for a few steps and writes its bundle.

    Args:
        folder: of the bundle; new.
        scratch: for files on the way.
    """
    torch.set_num_threads(1)
    public = pieces("email", 40)
    tokenizer = TextTokenizer.train((one.text for one in public), vocab_size=_VOCABULARY)
    recipe = TrainingRecipe(steps=12, batch_rows=2, sequence_tokens=128, precision="fp32")
    decoder, _ = pretrain(_SHAPE, public, tokenizer, recipe, seed=1)
    if decoder.lm_head is not None:
        # A greedy answer never ends by itself, so a stream is as long as it was asked to be.
        with torch.no_grad():
            decoder.lm_head.weight[tokenizer.end_of_text_id] = 0.0
    write_base(
        folder,
        decoder,
        tokenizer,
        public,
        name="tiny",
        license="Apache-2.0",
        trained_on="A few modules of the standard library.",
        created_at_us=time.time_ns() // 1000,
        code_version=code_version(),
        owner_key=generate_key(),
        staging=scratch,
    )


def write_dataset(path: Path, package: str, documents: int = 24) -> Path:
    """Writes an owner's documents: the source of one package of the standard library."""
    write_documents(path, pieces(package, documents))
    return path


def pieces(package: str, count: int) -> list[Document]:
    """Cuts the source of a package of the standard library into documents."""
    found: list[Document] = []
    for file in sorted((Path(os.__file__).parent / package).glob("*.py")):
        text = file.read_text(encoding="utf-8", errors="replace")
        for start in range(0, len(text), _PIECE_CHARACTERS):
            piece = text[start : start + _PIECE_CHARACTERS].strip()
            if piece:
                found.append(Document(id=f"{package}-{len(found)}", text=piece))
            if len(found) == count:
                return found
    return found

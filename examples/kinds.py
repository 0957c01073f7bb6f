# SPDX-License-Identifier: Apache-2.0
"""Measures what each kind of expert costs in bytes and in bits per byte, on the starter base.

One full expert is trained on text that every installation carries, and turned into the other kinds; narrow
and low-rank experts are also trained as such, with the same steps. Each is scored beside the public expert,
without gates, on documents that were kept out of training. Run ``python -m examples.kinds`` (about four
minutes of one core); it prints a table and keeps nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from examples import corpus
from examples.make_base import STARTER
from model_core.evaluation.bits import bits_per_byte, bits_per_document, cut_documents
from model_core.network.checkpoint import load_base_folder
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.packing.forms import FfnForm
from model_core.packing.manifest import CALIBRATION_FILE, TOKENIZER_FILE
from model_core.text.documents import Document, read_documents
from model_core.text.tokenizer import TextTokenizer
from model_core.training.expert import train_expert
from model_core.training.expert_recipe import ExpertRecipe
from model_core.training.gates import token_rows
from model_core.training.kinds import convert

_DOMAIN = "python"
_HELDOUT_DOCUMENTS = 40
_HELDOUT_CHARACTERS = 1500
_STEPS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        name: of the kind and its size.
        size_bytes: of the expert's tensors.
        bits: per byte of held-out text, of the pair.
        kept: share of the change's squared norm that a conversion to low rank kept, else None.
    """

    name: str
    size_bytes: int
    bits: float
    kept: float | None = None


class Bench:
    """The starter base with one owner's text.

    Args:
        folder: receives the text.
    """

    def __init__(self, folder: Path) -> None:
        self.decoder: Decoder = load_base_folder(STARTER)[1]
        self.tokenizer = TextTokenizer.load(STARTER / TOKENIZER_FILE)
        files = corpus.build(folder)[_DOMAIN].files
        self.train = read_documents(files["dataset"])
        heldout: Sequence[Document] = read_documents(files["heldout"])[:_HELDOUT_DOCUMENTS]
        self.heldout = cut_documents(heldout, _HELDOUT_CHARACTERS)
        self.public = read_documents(STARTER / CALIBRATION_FILE)
        self.rows = token_rows(self.train[::40][:48], self.tokenizer, max_tokens=256)

    def bits(self, *experts: Expert) -> float:
        """Bits per byte of held-out text, of the base alone or of the pair."""
        return bits_per_byte(
            bits_per_document(self.decoder, self.heldout, self.tokenizer, experts=experts, top_k=2)
        )

    def trained(self, **settings: Any) -> Expert:
        """An expert trained with the same steps, and these settings of its kind."""
        recipe = ExpertRecipe.of({"steps": _STEPS, "gated": False, "precision": "fp32", **settings})
        made = train_expert(self.decoder, self.tokenizer, self.train, self.public, recipe, seed=1).expert
        assert made is not None  # noqa: S101  (nobody asked it to stop)
        return made

    def converted(self, name: str, expert: Expert, form: FfnForm) -> Row:
        """The expert in another form, scored."""
        made, kept = convert(self.decoder, expert, form, self.rows)
        return Row(
            name=name,
            size_bytes=made.size_bytes,
            bits=self.bits(made),
            kept=kept if form.kind == "low_rank" else None,
        )


def measure(bench: Bench) -> list[Row]:
    """Trains four experts and scores ten."""
    width = bench.decoder.shape.d_ffn
    rows = [Row(name="base alone", size_bytes=0, bits=bench.bits())]
    full = bench.trained()
    rows.append(Row(name="full", size_bytes=full.size_bytes, bits=bench.bits(full)))
    for name, form in (
        ("split in 4", FfnForm(kind="split", d_ffn=width, pieces=4)),
        ("int8", FfnForm(kind="int8", d_ffn=width)),
        ("narrow, half the neurons, converted", FfnForm(kind="narrow", d_ffn=width // 2)),
        ("low rank 64, converted", FfnForm(kind="low_rank", d_ffn=width, rank=64)),
        ("low rank 16, converted", FfnForm(kind="low_rank", d_ffn=width, rank=16)),
    ):
        rows.append(bench.converted(name, full, form))
    for name, settings in (
        ("narrow, half the neurons, trained so", {"expert_kind": "narrow", "expert_width": width // 2}),
        ("low rank 64, trained so", {"expert_kind": "low_rank", "expert_rank": 64}),
        ("low rank 16, trained so", {"expert_kind": "low_rank", "expert_rank": 16}),
    ):
        made = bench.trained(trained_as_kind=True, **settings)
        rows.append(Row(name=name, size_bytes=made.size_bytes, bits=bench.bits(made)))
    return rows


def main() -> int:
    """Prints the table."""
    began = time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Bench(Path(folder)))
    base, full = rows[0].bits, rows[1].bits
    print(f"| kind | MB | bits per byte of {_DOMAIN} | gain kept | change kept |\n|---|---|---|---|---|")
    for row in rows:
        gain = f"{100 * (base - row.bits) / (base - full):.0f} %" if row.size_bytes else ""
        kept = "" if row.kept is None else f"{100 * row.kept:.0f} %"
        print(f"| {row.name} | {row.size_bytes / 1e6:.2f} | {row.bits:.3f} | {gain} | {kept} |")
    print(f"{_STEPS} steps, torch {torch.__version__}, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Rebuilds the starter base that the product ships, from text that this installation carries.

Run ``python -m examples.make_base`` (or ``make base``). It trains on the public mix alone: no private-domain
text and no held-out document. The shipped settings read 1.6 million tokens, some ten minutes of one core
with bf16 instructions, and an interrupted run goes on where it was. Packages of other versions give other
text, so the result is a base of the same kind, not the same bytes; the learning-rate schedule of the shipped
one was shortened while it ran, from 2400 steps to 800.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

import torch

from examples import corpus
from examples.calibration_text import own_documents, sampled_documents
from model_core.network.checkpoint import load_base_folder
from model_core.network.decoder import Decoder
from model_core.packing.keys import generate_key
from model_core.packing.manifest import TOKENIZER_FILE, ModelShape
from model_core.text.documents import Document, read_documents
from model_core.text.tokenizer import TextTokenizer
from model_core.training.base import pretrain, write_base
from model_core.training.progress import Progress
from model_core.training.recipe import TrainingRecipe
from model_core.training.versions import code_version

STARTER = Path(__file__).resolve().parent.parent / "model_core" / "starter"
VOCABULARY = 4096
MAX_CALIBRATION_BYTES = 400_000
SEED = 20260101
SHAPE = ModelShape(
    n_layers=4,
    d_model=256,
    n_heads=4,
    n_kv_heads=4,
    d_ffn=768,
    vocab_size=VOCABULARY,
    max_positions=1024,
    rope_theta=10_000.0,
    norm_eps=1e-6,
)
RECIPE = TrainingRecipe(
    steps=800,
    batch_rows=2,
    sequence_tokens=1024,
    learning_rate=3e-3,
    warmup_share=0.05,
    weight_decay=0.1,
    checkpoint_every=100,
)


def calibration_documents(decoder: Decoder, tokenizer: TextTokenizer) -> list[Document]:
    """Beginnings of the product's own pages and of the base's own samples, within the size that travels."""
    root = Path(__file__).resolve().parent.parent
    chosen: list[Document] = []
    left = MAX_CALIBRATION_BYTES
    both = [*own_documents(root), *sampled_documents(decoder, tokenizer, seed=SEED)]
    for document in sorted(both, key=lambda item: hashlib.sha256(item.id.encode()).digest()):
        short = Document(id=document.id, text=document.text[:2_400])
        left -= len(json.dumps({"id": short.id, "text": short.text}, ensure_ascii=False).encode()) + 1
        if left < 0:
            break
        chosen.append(short)
    return sorted(chosen, key=lambda item: item.id)


def notices() -> bytes:
    """Names, versions and licenses of the packages whose documentation the weights were trained on."""
    found = [
        {"package": package, "version": version, "license": license_}
        for package, version, license_ in corpus.sources()
    ]
    return json.dumps({"sources": found}, indent=1, ensure_ascii=False).encode()


def _print_step(progress: Progress) -> None:
    if progress.metric.step % 20 == 0:
        print(
            f"step {progress.metric.step}/{progress.steps}  loss {progress.metric.loss:.3f}  "
            f"{progress.tokens_per_s:.0f} tokens/s  {progress.eta_s / 60:.1f} min to go",
            flush=True,
        )


def main(arguments: list[str]) -> int:
    """Builds corpus, tokenizer and base, and writes the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=STARTER, help="folder of the bundle; replaced when done")
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="checkpoints and scratch")
    parser.add_argument(
        "--keep-weights", action="store_true", help="renew only what travels with the weights"
    )
    parser.add_argument("--steps", type=int, default=RECIPE.steps)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    if chosen.keep_weights:
        _, decoder = load_base_folder(chosen.out)
        tokenizer = TextTokenizer.load(chosen.out / TOKENIZER_FILE)
        said = "weights kept"
    else:
        public = corpus.build(chosen.work / "corpus")[corpus.PUBLIC]
        documents = read_documents(public.files["train"])
        tokenizer = TextTokenizer.train((document.text for document in documents), vocab_size=VOCABULARY)
        recipe = RECIPE.model_copy(update={"steps": chosen.steps})
        decoder, outcome = pretrain(
            SHAPE,
            documents,
            tokenizer,
            recipe,
            seed=SEED,
            work_folder=chosen.work / "run",
            on_step=_print_step,
        )
        said = f"{outcome.steps_done} steps, final loss {outcome.final_loss:.3f} nats a token"
    names = ", ".join(f"{package} {version}" for package, version, _license in corpus.sources())
    draft = chosen.work / "bundle"
    shutil.rmtree(draft, ignore_errors=True)
    bundle = write_base(
        draft,
        decoder,
        tokenizer,
        calibration_documents(decoder, tokenizer),
        name="starter",
        license="Apache-2.0",
        trained_on=f"Documentation strings and descriptions of open packages: {names}.",
        created_at_us=time.time_ns() // 1000,
        code_version=code_version(),
        owner_key=generate_key(),
        side_files={"notices.json": notices()},
        staging=chosen.work / "staging",
    )
    shutil.rmtree(chosen.out, ignore_errors=True)
    shutil.copytree(draft, chosen.out)
    print(f"{bundle.digest}: {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

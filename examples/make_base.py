# SPDX-License-Identifier: Apache-2.0
"""Rebuilds the starter base that the product ships, from text that this installation carries.

Run ``python -m examples.make_base`` (or ``make base``). It trains on the public mix alone: no private-domain
text and no held-out document. The shipped settings read 1.6 million tokens, some ten minutes of one core
with bf16 instructions, and an interrupted run goes on where it was. Packages of other versions give other
text, so the result is a base of the same kind, not the same bytes; of the shipped one it is known that its
learning-rate schedule was shortened once while it ran.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import shutil
import sys
import time
from pathlib import Path

import torch

from examples import corpus
from model_core.packing.keys import generate_key
from model_core.packing.manifest import ModelShape
from model_core.text.documents import Document, read_documents
from model_core.text.tokenizer import TextTokenizer
from model_core.training.base import pretrain, write_base
from model_core.training.recipe import TrainingRecipe
from model_core.training.run import Progress
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


def calibration_sample(documents: tuple[Document, ...]) -> list[Document]:
    """A part of the calibration split that may travel with the base: the beginnings of many documents."""
    chosen: list[Document] = []
    left = MAX_CALIBRATION_BYTES - 20_000
    for document in sorted(documents, key=lambda item: hashlib.sha256(item.id.encode()).digest()):
        short = Document(id=document.id, text=document.text[:4_000].rsplit("\n", 1)[0] + "\n")
        left -= len(json.dumps({"id": short.id, "text": short.text}, ensure_ascii=False).encode())
        if left < 0:
            break
        chosen.append(short)
    return sorted(chosen, key=lambda item: item.id)


def notices() -> bytes:
    """Names, versions, licenses and license texts of the packages whose documentation was used."""
    found = []
    for package, version, license_ in corpus.sources():
        texts = []
        if package != "python":
            for file in importlib.metadata.files(package) or []:
                name = file.name.lower()
                inside = ".dist-info" in file.parts[0]
                if inside and name.startswith(("license", "copying", "notice")) and "bundled" not in name:
                    text = file.locate().read_text(encoding="utf-8", errors="replace")  # type: ignore[attr-defined]
                    texts.append(text[:20_000])
        found.append(
            {"package": package, "version": version, "license": license_, "license_texts": texts[:2]}
        )
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
    parser.add_argument("--steps", type=int, default=RECIPE.steps)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    public = corpus.build(chosen.work / "corpus")[corpus.PUBLIC]
    documents = read_documents(public.files["train"])
    tokenizer = TextTokenizer.train((document.text for document in documents), vocab_size=VOCABULARY)
    recipe = RECIPE.model_copy(update={"steps": chosen.steps})
    decoder, outcome = pretrain(
        SHAPE, documents, tokenizer, recipe, seed=SEED, work_folder=chosen.work / "run", on_step=_print_step
    )
    names = ", ".join(f"{package} {version}" for package, version, _license in corpus.sources())
    draft = chosen.work / "bundle"
    shutil.rmtree(draft, ignore_errors=True)
    bundle = write_base(
        draft,
        decoder,
        tokenizer,
        calibration_sample(read_documents(public.files["calibration"])),
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
    print(f"{bundle.digest}: {outcome.steps_done} steps, final loss {outcome.final_loss:.3f} nats a token")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""Trains a small public base from text alone, and writes its bundle.

The result is a dense decoder; its public router rows stay 0, the origin that experts' rows are measured
from. This module does not know where the text came from: the caller says so in the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from model_core.errors import RecipeRefused
from model_core.network.checkpoint import save_decoder
from model_core.network.decoder import Decoder
from model_core.packing.bundle import CheckedBundle, write_bundle
from model_core.packing.canonical import digest_bytes, digest_file
from model_core.packing.keys import SigningKey
from model_core.packing.manifest import (
    BASE_WEIGHTS_FILE,
    CALIBRATION_FILE,
    TOKENIZER_FILE,
    BaseManifest,
    ModelShape,
)
from model_core.text.batches import pack
from model_core.text.documents import Document, write_documents
from model_core.text.tokenizer import TextTokenizer
from model_core.training.objective import DenseObjective
from model_core.training.progress import Progress
from model_core.training.recipe import TrainingRecipe
from model_core.training.run import RunOutcome, TrainingRun


def pretrain(
    shape: ModelShape,
    documents: Sequence[Document],
    tokenizer: TextTokenizer,
    recipe: TrainingRecipe,
    *,
    seed: int,
    work_folder: Path | None = None,
    on_step: Callable[[Progress], None] = lambda _progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Decoder, RunOutcome]:
    """Trains a decoder from fresh weights.

    Args:
        shape: sizes; the vocabulary must hold the tokenizer's.
        documents: public text.
        tokenizer: encodes it.
        recipe: settings.
        seed: of weights, document order and data order.
        work_folder: for checkpoints and metrics; an interrupted run goes on from it.
        on_step: called after every step.
        stop: True ends the attempt after a checkpoint.

    Raises:
        RecipeRefused: rows longer than the model's positions, or a vocabulary that is too small.
        DatasetRefused: too little text.
        TrainingDiverged: the loss is not finite or has run away.
    """
    if recipe.sequence_tokens > shape.max_positions:
        raise RecipeRefused(
            f"Rows of {recipe.sequence_tokens} tokens exceed the model's {shape.max_positions} positions.",
            fields=["sequence_tokens"],
        )
    if tokenizer.vocab_size > shape.vocab_size:
        raise RecipeRefused(
            f"The tokenizer has {tokenizer.vocab_size} tokens, the model only {shape.vocab_size}.",
            fields=["vocab_size"],
        )
    packed = pack(documents, tokenizer, sequence_tokens=recipe.sequence_tokens, seed=seed)
    decoder = Decoder(shape)
    draw_weights(decoder, seed=seed)
    objective = DenseObjective(
        decoder, logit_z_loss=recipe.logit_z_loss, recompute=recipe.recompute_activations
    )
    identity = {"shape": shape.model_dump_json()}
    run = TrainingRun(objective, packed, recipe, seed=seed, folder=work_folder, identity=identity)
    outcome = run.train(on_step=on_step, stop=stop)
    return decoder.requires_grad_(False).eval(), outcome


@torch.no_grad()
def draw_weights(decoder: Decoder, *, seed: int) -> None:
    """Draws fresh weights whose residual stream is of one scale from the first layer on.

    Norms stand after attention and FFN, so what they add to the stream has unit scale whatever the
    matrices' scale. Embeddings of the usual 0.02 would drown in it: the first layers would not see which
    token they stand on, and a short run never recovers. So embeddings start at unit scale.

    Args:
        decoder: drawn in place.
        seed: of the draw.
    """
    width = decoder.shape.d_model
    decoder.init_weights(seed=seed, std=width**-0.5)
    if decoder.lm_head is not None:
        decoder.embed.weight.mul_(width**0.5)
        decoder.lm_head.weight.mul_(0.3)


def write_base(
    folder: Path,
    decoder: Decoder,
    tokenizer: TextTokenizer,
    calibration: Sequence[Document],
    *,
    name: str,
    license: str,  # noqa: A002 (the manifest's field)
    trained_on: str,
    created_at_us: int,
    code_version: str,
    owner_key: SigningKey,
    side_files: Mapping[str, bytes] | None = None,
    staging: Path,
) -> CheckedBundle:
    """Writes a sealed base bundle.

    Weights are rounded to bf16 and kept as fp32: the model loses nothing that matters, and half of each
    number is zeros, so archives of the file are half as large.

    Args:
        folder: new or empty.
        decoder: the trained model; its weights are rounded in place.
        tokenizer: its tokenizer.
        calibration: public text that owners fit gates against and calibrate on; it travels with the base.
        name: the base's name.
        license: SPDX expression.
        trained_on: what the public text was.
        created_at_us: microseconds since the Unix epoch, UTC.
        code_version: of the product.
        owner_key: signs for the platform.
        side_files: further ``.json`` files, such as notices.
        staging: a scratch folder.
    """
    staging.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())
    save_decoder(decoder, staging / BASE_WEIGHTS_FILE)
    tokenizer.save(staging / TOKENIZER_FILE)
    write_documents(staging / CALIBRATION_FILE, calibration)
    files: dict[str, Path | bytes] = {
        file: staging / file for file in (BASE_WEIGHTS_FILE, TOKENIZER_FILE, CALIBRATION_FILE)
    }
    digests = {file: digest_file(staging / file) for file in files}
    for file, body in (side_files or {}).items():
        files[file], digests[file] = body, digest_bytes(body)
    manifest = BaseManifest(
        name=name,
        shape=decoder.shape,
        tokenizer_digest=digests[TOKENIZER_FILE],
        weights_digest=digests[BASE_WEIGHTS_FILE],
        calibration_digest=digests[CALIBRATION_FILE],
        license=license,
        trained_on=trained_on,
        created_at_us=created_at_us,
        code_version=code_version,
        files=digests,
    )
    return write_bundle(folder, manifest, files, owner_key)

# SPDX-License-Identifier: Apache-2.0
"""The work of one training job, from a data set and a base to the unsealed files of an expert bundle.

It runs inside the enclosure: it reads the base and the tenant's documents, writes its own work folder, and
says how far it is. It resumes from the work folder after a kill at any instant. It does not sign: the
owner's key never enters the enclosure. It knows neither Ray nor SQL nor policy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from model_core.errors import BundleWrongBase, DatasetRefused, RecipeRefused
from model_core.evaluation.bits import bits_per_byte, bits_per_document, cut_documents
from model_core.network.checkpoint import load_base_folder, save_expert
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.packing.bundle import check_bundle
from model_core.packing.canonical import digest_bytes, digest_file
from model_core.packing.files import sync_folder, write_new_file
from model_core.packing.manifest import (
    CALIBRATION_FILE,
    EXPERT_WEIGHTS_FILE,
    MANIFEST_FILE,
    METRICS_FILE,
    TOKENIZER_FILE,
    BaseManifest,
    ExpertManifest,
)
from model_core.text.batches import describe
from model_core.text.documents import Document, read_documents, split_documents
from model_core.text.tokenizer import TextTokenizer
from model_core.training.expert import ExpertResult, train_expert
from model_core.training.expert_recipe import ExpertRecipe
from model_core.training.finishing import public_halves
from model_core.training.progress import Progress
from model_core.training.versions import code_version, torch_version
from tenants.workshop.protocol import (
    ChildEvent,
    DoneEvent,
    JobSpec,
    MetricEvent,
    PhaseEvent,
    ProgressEvent,
)

DEFAULT_SEED = 17
_SAY_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOutcome:
    """How a job ended.

    Attributes:
        finished: False if it was asked to stop; it then goes on from its checkpoint when started again.
        manifest_digest: digest of the written manifest, empty if not finished.
        resumed_from: optimizer step that this attempt began at.
    """

    finished: bool
    manifest_digest: str
    resumed_from: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Materials:
    """What a job reads."""

    base: BaseManifest
    base_digest: str
    decoder: Decoder
    tokenizer: TextTokenizer
    public: tuple[Document, ...]
    train: tuple[Document, ...]
    heldout: tuple[Document, ...]


def run_job(
    spec: JobSpec, emit: Callable[[ChildEvent], None], stop: Callable[[], bool] = lambda: False
) -> JobOutcome:
    """Trains an expert and leaves the unsealed bundle in ``spec.output_folder``.

    Args:
        spec: what to train on what.
        emit: told phases, metrics, progress and the end.
        stop: asked after every optimizer step; True ends the attempt after a checkpoint.

    Returns:
        The outcome. A second run of the same spec on the same machine writes the same weights.

    Raises:
        RecipeRefused: the recipe has unknown names or values outside their bounds.
        DatasetRefused: the data set cannot be read or is too small.
        PackingError: the base folder is not the base that the spec names.
        TrainingDiverged: the loss is not finite or has run away.
        CheckpointInvalid: the work folder belongs to another job.
    """
    torch.set_num_threads(spec.threads)
    recipe, seed = read_recipe(spec.recipe)
    emit(PhaseEvent(name="read", message="Reading the base and the documents."))
    materials = _read_materials(spec, recipe)
    work = Path(spec.work_folder) / "run"
    voice = _Voice(emit)
    result = train_expert(
        materials.decoder,
        materials.tokenizer,
        materials.train,
        materials.public,
        recipe,
        seed=seed,
        base_digest=materials.base_digest,
        work_folder=work,
        on_phase=lambda name: emit(PhaseEvent(name=name)),
        on_step=voice.step,
        on_notice=lambda notice: emit(PhaseEvent(name="train", message=notice.sentence[:500])),
        stop=stop,
    )
    if result.expert is None:
        return JobOutcome(finished=False, manifest_digest="", resumed_from=result.outcome.resumed_from)
    emit(PhaseEvent(name="evaluate", message="Scoring documents that were kept out of training."))
    metrics = _evaluate(materials, result.expert, result, recipe)
    for name, value in metrics.items():
        emit(MetricEvent(step=result.outcome.steps_done, name=name, value=value))
    emit(PhaseEvent(name="pack", message="Writing the bundle's files."))
    digest = _write_output(
        spec,
        recipe=recipe,
        seed=seed,
        materials=materials,
        result=result,
        metrics=metrics,
        training_metrics=(work / "metrics.jsonl").read_bytes(),
    )
    emit(DoneEvent(manifest_digest=digest))
    return JobOutcome(finished=True, manifest_digest=digest, resumed_from=result.outcome.resumed_from)


def read_recipe(settings: Mapping[str, bool | int | float | str]) -> tuple[ExpertRecipe, int]:
    """Reads a job's recipe: an expert recipe and the seed.

    Raises:
        RecipeRefused: unknown names or values outside their bounds.
    """
    rest = dict(settings)
    seed = rest.pop("seed", DEFAULT_SEED)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**53:
        raise RecipeRefused("The seed must be an integer from 0 up to 2**53.", fields=["seed"])
    return ExpertRecipe.of(rest), seed


def _read_materials(spec: JobSpec, recipe: ExpertRecipe) -> _Materials:
    folder = Path(spec.base_folder)
    checked = check_bundle(folder, expect_digest=spec.base_digest)
    manifest, decoder = load_base_folder(folder)
    if manifest.calibration_digest is None:
        raise BundleWrongBase(
            "The base carries no calibration text, which experts are fitted against. Use a base that does.",
            base=checked.digest,
        )
    if recipe.sequence_tokens > manifest.shape.max_positions:
        raise RecipeRefused(
            f"Rows of {recipe.sequence_tokens} tokens exceed the base's "
            f"{manifest.shape.max_positions} positions.",
            fields=["sequence_tokens"],
        )
    documents = read_documents(Path(spec.dataset_file))
    shares = {"train": 1 - recipe.heldout_share, "heldout": recipe.heldout_share}
    parts = split_documents(documents, shares, salt="workshop")
    train, heldout = parts["train"], parts["heldout"] or parts["train"][-1:]
    train = tuple(document for document in train if document not in heldout)
    if not train:
        raise DatasetRefused(
            "The data set is too small: at least two documents are needed, one to train on and one to score.",
            documents=len(documents),
        )
    return _Materials(
        base=manifest,
        base_digest=checked.digest,
        decoder=decoder.float(),
        tokenizer=TextTokenizer.load(folder / TOKENIZER_FILE),
        public=read_documents(folder / CALIBRATION_FILE),
        train=train,
        heldout=heldout,
    )


def _evaluate(
    materials: _Materials, expert: Expert, result: ExpertResult, recipe: ExpertRecipe
) -> dict[str, float]:
    """Bits per byte of base and pair on the job's own held-out documents and on public text.

    Under differential privacy figures on own text would tell of it outside the noise, so there are none.
    """
    own = cut_documents(materials.heldout[: recipe.heldout_documents], recipe.heldout_characters)
    public = cut_documents(
        public_halves(materials.public)[1][: recipe.heldout_documents], recipe.heldout_characters
    )
    metrics: dict[str, float] = {}
    places = {"public": public} if result.privacy else {"heldout": own, "public": public}
    for place, documents in places.items():
        for who, experts in (("base", ()), ("pair", (expert,))):
            scores = bits_per_document(
                materials.decoder, documents, materials.tokenizer, experts=experts, top_k=2
            )
            metrics[f"{place}_bits_per_byte_{who}"] = bits_per_byte(scores)
    if math.isfinite(result.outcome.final_loss):
        name = "public_loss_final" if result.privacy else "train_loss_final"
        metrics[name] = result.outcome.final_loss
    if result.gates:
        metrics["gate_accuracy"] = sum(fit.accuracy for fit in result.gates) / len(result.gates)
    metrics["train_tokens"] = float(recipe.steps * recipe.step_tokens)
    metrics["expert_bytes"] = float(expert.size_bytes)
    if expert.kind == "low_rank":
        metrics["kept_energy"] = result.kept_energy
    if result.privacy:
        metrics["dp_epsilon"] = result.privacy.epsilon
    return metrics


def _write_output(
    spec: JobSpec,
    *,
    recipe: ExpertRecipe,
    seed: int,
    materials: _Materials,
    result: ExpertResult,
    metrics: dict[str, float],
    training_metrics: bytes,
) -> str:
    output = Path(spec.output_folder)
    output.mkdir(parents=True, exist_ok=True)
    for name in (EXPERT_WEIGHTS_FILE, METRICS_FILE, MANIFEST_FILE):
        (output / name).unlink(missing_ok=True)  # what an attempt that was killed here had left
    assert result.expert is not None  # noqa: S101  (the run finished)
    save_expert(result.expert, output / EXPERT_WEIGHTS_FILE)
    write_new_file(output / METRICS_FILE, training_metrics)
    shape, form = materials.base.shape, result.expert.form
    manifest = ExpertManifest(
        name=spec.name,
        tenant=spec.tenant,
        base_digest=materials.base_digest,
        tokenizer_digest=materials.base.tokenizer_digest,
        expert_kind=form.kind,
        d_ffn=form.d_ffn,
        rank=form.rank,
        pieces=form.pieces,
        gated=result.expert.gated,
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        recipe={
            **recipe.model_dump(mode="json"),
            **(result.privacy.facts() if result.privacy else {}),
            "precision_used": result.outcome.precision,
            # Which documents a private run sampled is what its noise hides; not even a digest of it leaves.
            "data_order": "" if result.privacy else result.outcome.data_order,
            "strayed": ",".join(result.outcome.strayed),
            **{f"ran_on_{name}": value for name, value in result.outcome.machine.items()},
        },
        seeds={"order": seed},
        data_card=describe(
            materials.train,
            license=spec.data_license,
            description=spec.data_description,
            tokens=result.packed_tokens,
        ),
        metrics=metrics,
        calibration={name: float(value) for name, value in asdict(result.calibration).items()}
        if result.calibration
        else {},
        files={name: digest_file(output / name) for name in (EXPERT_WEIGHTS_FILE, METRICS_FILE)},
        created_at_us=spec.created_at_us,
        code_version=code_version(),
        torch_version=torch_version(),
        threads=spec.threads,
    )
    body = manifest.to_bytes()
    write_new_file(output / MANIFEST_FILE, body)
    sync_folder(output)
    return digest_bytes(body)


class _Voice:
    """Says how training goes: every step's loss, and progress a few times a second at most."""

    def __init__(self, emit: Callable[[ChildEvent], None]) -> None:
        self._emit = emit
        self._last = -math.inf

    def step(self, progress: Progress) -> None:
        metric = progress.metric
        self._emit(MetricEvent(step=metric.step, name="loss", value=metric.loss))
        now = time.monotonic()
        if now - self._last >= _SAY_EVERY_S or metric.step == progress.steps:
            self._last = now
            self._emit(ProgressEvent(done=metric.step, total=progress.steps))
            self._emit(MetricEvent(step=metric.step, name="tokens_per_s", value=progress.tokens_per_s))
            self._emit(MetricEvent(step=metric.step, name="eta_s", value=progress.eta_s))

# SPDX-License-Identifier: Apache-2.0
"""Takes a composition out as a folder that opens with ``AutoModelForCausalLM``.

Without experts the folder is an OLMo-2, Llama or OLMoE model; with experts FlexOlmo, Mixtral or OLMoE. What
the layout cannot hold (see ``merging``) makes a strict export refuse. An approximate one leaves it out, opens
what it has written, and says in the model card by how much the folder differs from what is served. Whether a
composition *may* leave is not asked here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from model_core.errors import ExportNotExact, ModelFolderRefused
from model_core.interop.card import MemberTerms, model_card
from model_core.interop.config import CONFIG_FILE, Layout, write_config
from model_core.interop.importing import SIDE_FILES
from model_core.interop.measuring import Difference, measure
from model_core.interop.merging import Merged
from model_core.interop.progress import Meter, OnProgress
from model_core.interop.writer import write_shards
from model_core.network.checkpoint import load_base_folder, load_expert_folder
from model_core.network.expert import Expert
from model_core.network.tuned_router import TunedRouter, apply_tuned
from model_core.packing.bundle import CheckedBundle, check_fits_base
from model_core.packing.files import copy_plain_file, write_new_file
from model_core.packing.manifest import (
    CALIBRATION_FILE,
    TOKENIZER_FILE,
    BaseManifest,
    ExpertManifest,
)
from model_core.text.documents import Document, read_documents
from model_core.text.tokenizer import TOKENIZER_CONFIG_FILE, TextTokenizer

CARD_FILE = "README.md"
COMPOSITION_FILE = "composition.json"
MEASURED_DOCUMENTS = 8
_SHARD_BYTES = 5 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportTerms:
    """What whoever exports states about the folder.

    Attributes:
        title: heading of the model card.
        members: bundle digest (the base's too) → license and obligations, where stated; others have the
            license of their manifest and no obligations.
        notes: further sentences for the card, such as who took the copy and when.
    """

    title: str
    members: Mapping[str, MemberTerms] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What was written.

    Attributes:
        folder: the model folder.
        layout: architecture, sizes, number of experts and experts per token.
        experts: bundle digests in the order in which they stand in the folder, after the public expert.
        lost: what was left out or rounded: (expert's digest or ``""``, sentence); empty for exact exports.
        difference: between the folder and the composition; None for exact exports.
        notes: sentences on opening the folder.
        files: names of everything written.
    """

    folder: Path
    layout: Layout
    experts: tuple[str, ...]
    lost: tuple[tuple[str, str], ...]
    difference: Difference | None
    notes: tuple[str, ...]
    files: tuple[str, ...]


def export_composition(
    base: CheckedBundle,
    experts: Sequence[CheckedBundle],
    out: Path,
    terms: ExportTerms,
    *,
    top_k: int,
    approximate: bool = False,
    documents: Sequence[Document] | None = None,
    tuned: TunedRouter | None = None,
    shard_bytes: int = _SHARD_BYTES,
    on_progress: OnProgress = lambda _progress: None,
) -> ExportReport:
    """Writes a base and experts as one model folder.

    Args:
        base: the checked base bundle.
        experts: checked expert bundles, in any order; they stand in canonical order in the folder.
        out: new or empty.
        terms: for the model card.
        top_k: experts per token, the public one counted; clamped to their number.
        approximate: leave out or round what the layout cannot hold, and measure the difference.
        documents: public text to measure on; None takes the first of the base's calibration text.
        tuned: router rows that were tuned for exactly these experts, in the place of their own.
        shard_bytes: where a file of weights ends.
        on_progress: told what is being done, and how far it is.

    Raises:
        ExportNotExact: the layout cannot hold the composition (``facts["reasons"]``), or there is no text to
            measure an approximate export on.
        BundleWrongBase: an expert was made for another base.
        RouterNeedsRedo: the tuned rows are for other experts.
        ModelFolderRefused: ``out`` is not empty.
    """
    manifest, decoder = load_base_folder(base.folder)
    bundles = {bundle.digest: bundle for bundle in sorted(experts, key=lambda one: one.digest)}
    loaded: dict[str, Expert] = {}
    for digest, bundle in bundles.items():
        check_fits_base(_expert_manifest(bundle), manifest, base.digest)
        _, loaded[digest] = load_expert_folder(bundle.folder, base.digest, manifest.shape)
    if tuned is not None:
        loaded = apply_tuned(loaded, tuned)
    merged = Merged(decoder, loaded, top_k)
    lost = merged.lost()
    if lost and not approximate:
        raise _refusal(lost, bundles)
    text = _text_for(base, documents) if lost else ()
    if out.exists() and any(out.iterdir()):
        raise ModelFolderRefused(
            "A model is written into an empty folder; choose another one.", file=out.name
        )
    out.mkdir(parents=True, exist_ok=True)
    try:
        parts = merged.parts()
        meter = Meter(on_progress, sum(part.size_bytes for part in parts))
        meter.begin("weights")
        files = list(write_shards(out, parts, shard_bytes=shard_bytes, on_bytes=meter.add))
        tokenizer = TextTokenizer.load(base.folder / TOKENIZER_FILE)
        files += _write_papers(base.folder, manifest, merged, tokenizer, out)
        difference = None
        if lost:
            meter.begin("measure")
            served = (decoder, tuple(loaded.values()), merged.layout.top_k)
            difference = measure(served, out, text, tokenizer)
        report = ExportReport(
            folder=out,
            layout=merged.layout,
            experts=tuple(bundles),
            lost=lost,
            difference=difference,
            notes=_notes(merged, tuned),
            files=(*files, COMPOSITION_FILE, CARD_FILE),
        )
        _describe(report, base, bundles, terms)
    except BaseException:
        for entry in out.iterdir():
            entry.unlink()
        raise
    return report


def _write_papers(
    folder: Path, manifest: BaseManifest, merged: Merged, tokenizer: TextTokenizer, out: Path
) -> list[str]:
    """Config and tokenizer; returns the names written."""
    names = [TOKENIZER_FILE, *(name for name in SIDE_FILES if name in manifest.files)]
    for name in names:
        copy_plain_file(folder / name, out / name)
    if TOKENIZER_CONFIG_FILE not in names:
        # Without it AutoTokenizer does not know what to make of tokenizer.json.
        end = tokenizer.token(tokenizer.end_of_text_id)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": end,
            "bos_token": tokenizer.token(tokenizer.begin_id),
            "model_max_length": manifest.shape.max_positions,
        }
        write_new_file(out / TOKENIZER_CONFIG_FILE, _json(config))
        names.append(TOKENIZER_CONFIG_FILE)
    tokens = {"bos_token_id": tokenizer.begin_id, "eos_token_id": tokenizer.end_of_text_id}
    dtype = str(merged.dtype).removeprefix("torch.")
    write_new_file(out / CONFIG_FILE, write_config(merged.layout, dtype=dtype, tokens=tokens))
    return [*names, CONFIG_FILE]


def _describe(
    report: ExportReport, base: CheckedBundle, bundles: Mapping[str, CheckedBundle], terms: ExportTerms
) -> None:
    """Writes the model card for people and ``composition.json`` for programs."""
    lines = [_line(base, terms), *(_line(bundle, terms) for bundle in bundles.values())]
    document = {
        "base": base.digest,
        "experts": list(report.experts),
        "top_k": report.layout.top_k,
        "exact": not report.lost,
        "lost": [{"expert": digest, "what": sentence} for digest, sentence in report.lost],
        "difference": None if report.difference is None else asdict(report.difference),
        "members": lines,
    }
    write_new_file(report.folder / COMPOSITION_FILE, _json(document))
    card = model_card(
        title=terms.title,
        members=lines,
        lost=report.lost,
        difference=report.difference,
        notes=(*report.notes, *terms.notes),
        layout=report.layout,
    )
    write_new_file(report.folder / CARD_FILE, card.encode())


def _line(bundle: CheckedBundle, terms: ExportTerms) -> dict[str, object]:
    manifest = bundle.manifest
    license_ = manifest.license if isinstance(manifest, BaseManifest) else manifest.data_card.license
    stated = terms.members.get(bundle.digest) or MemberTerms(license=license_)
    return {
        "digest": bundle.digest,
        "kind": manifest.kind,
        "name": manifest.name,
        "tenant": manifest.tenant if isinstance(manifest, ExpertManifest) else "",
        "license": stated.license,
        "obligations": list(stated.obligations),
    }


def _refusal(lost: Sequence[tuple[str, str]], bundles: Mapping[str, CheckedBundle]) -> ExportNotExact:
    digest, sentence = lost[0]
    who = f"expert {bundles[digest].manifest.name}: " if digest else ""
    return ExportNotExact(
        f"The plain layout cannot hold this composition exactly, first {who}{sentence} An approximate export "
        "leaves it out and writes the measured difference into the model card.",
        reasons=[f"{digest} {sentence}".strip() for digest, sentence in lost],
    )


def _text_for(base: CheckedBundle, documents: Sequence[Document] | None) -> tuple[Document, ...]:
    """What an approximate export is measured on."""
    if documents is None and CALIBRATION_FILE in base.manifest.files:
        documents = read_documents(base.folder / CALIBRATION_FILE)[:MEASURED_DOCUMENTS]
    if not documents:
        raise ExportNotExact(
            "An approximate export is measured on text, and the base brings none; pass public documents.",
            reasons=["no text"],
        )
    return tuple(documents)


def _notes(merged: Merged, tuned: TunedRouter | None) -> tuple[str, ...]:
    notes = []
    if merged.rows_rounded:
        notes.append(
            f"Router rows are stored in float32, since {str(merged.dtype).removeprefix('torch.')} would "
            "round them. A reader that opens the folder in its config's dtype rounds them, and near a tie "
            "may choose other experts; opened in float32 nothing is rounded."
        )
    if tuned is not None:
        notes.append(
            "Router rows were tuned for these experts together; taking one out needs them tuned anew."
        )
    return tuple(notes)


def _expert_manifest(bundle: CheckedBundle) -> ExpertManifest:
    if not isinstance(bundle.manifest, ExpertManifest):
        raise ModelFolderRefused("A base was passed in the place of an expert.", file=bundle.folder.name)
    return bundle.manifest


def _json(document: Mapping[str, object]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()

# SPDX-License-Identifier: Apache-2.0
"""Brings a Hugging Face model folder in: one sealed base, and one sealed bundle per further expert.

A dense folder becomes a base. A mixture folder becomes a base and experts (see ``splitting``); with
``known_base`` the experts attach to a base that is already here, after everything shared was compared with it
byte for byte. Weights keep their dtype and pass through memory one tensor at a time. Nothing of the folder is
executed, and files of it that are not named here stay behind.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model_core.errors import ModelFolderRefused, SharedPartDiffers
from model_core.interop.config import Layout, read_config
from model_core.interop.folders import read_side_file
from model_core.interop.progress import Meter, OnProgress
from model_core.interop.reader import open_file
from model_core.interop.splitting import Source
from model_core.interop.writer import Part, write_safetensors
from model_core.packing.bundle import CheckedBundle, check_bundle, write_bundle
from model_core.packing.canonical import digest_bytes, digest_file, merkle_root
from model_core.packing.ids import check_name
from model_core.packing.keys import SigningKey
from model_core.packing.manifest import (
    BASE_WEIGHTS_FILE,
    CALIBRATION_FILE,
    EXPERT_WEIGHTS_FILE,
    METRICS_FILE,
    TOKENIZER_FILE,
    BaseManifest,
    DataCard,
    ExpertManifest,
)
from model_core.packing.seal import PLATFORM_TENANT
from model_core.text.documents import Document, write_documents
from model_core.text.tokenizer import TOKENIZER_CONFIG_FILE, TextTokenizer

SIDE_FILES = (TOKENIZER_CONFIG_FILE, "generation_config.json", "special_tokens_map.json")
NO_TRAINING = "none: imported"  # in the place of the torch version that trained an expert
_MAX_SIDE_FILE_BYTES = 64 << 20
_STAGING = "staging"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportTerms:
    """What whoever imports a folder states about it.

    Attributes:
        name: of the base.
        license: SPDX expression of the base.
        trained_on: what it was trained on, in a sentence.
        owner_key: seals the base for the platform.
        created_at_us: microseconds since the Unix epoch, UTC.
        code_version: of the product.
        public_documents: public text that travels with the base, against which owners fit and calibrate.
        max_positions: longest sequence to serve, in place of the config's (some say -1).
        tenant: owner of the experts.
        expert_key: seals the experts for their owner; None: ``owner_key``.
        expert_names: one per expert beside the public one, in the folder's order; None numbers them.
        expert_license: SPDX expression of what the experts were trained on; None: the base's.
        data_cards: expert's name → data card, where its training data is known.
    """

    name: str
    license: str
    trained_on: str
    owner_key: SigningKey = field(repr=False)
    created_at_us: int
    code_version: str
    public_documents: Sequence[Document] = ()
    max_positions: int | None = None
    tenant: str = PLATFORM_TENANT
    expert_key: SigningKey | None = field(default=None, repr=False)
    expert_names: Sequence[str] | None = None
    expert_license: str | None = None
    data_cards: Mapping[str, DataCard] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportResult:
    """What a folder has become.

    Attributes:
        base: the base bundle (with ``known_base``: that one).
        experts: one bundle per expert beside the public one, in the folder's order.
        layout: what its config said; ``layout.top_k`` experts per token, the public one counted.
        notes: sentences for whoever imports: what was decided, and what to mind.
    """

    base: CheckedBundle
    experts: tuple[CheckedBundle, ...]
    layout: Layout
    notes: tuple[str, ...]


def import_folder(
    folder: Path,
    out: Path,
    terms: ImportTerms,
    *,
    known_base: Path | None = None,
    on_progress: OnProgress = lambda _progress: None,
) -> ImportResult:
    """Imports a model folder.

    Args:
        folder: ``config.json``, ``tokenizer.json`` and safetensors weights, whole or in shards.
        out: new or empty; receives ``base`` and ``experts/NAME``.
        terms: what is stated about it.
        known_base: folder of a base bundle with which the folder must share everything but its experts.
        on_progress: told what is being done, and how far it is.

    Raises:
        ConfigUnsupported: the model computes something that this decoder does not; names the field.
        ModelFolderRefused: files or tensors are missing, unknown or of another shape or dtype.
        SharedPartDiffers: a tensor, a size or the tokenizer is not that of ``known_base``; names it.
        TokenizerInvalid: the tokenizer cannot be read or lacks its end of text.
        TensorsNotFinite: weights hold NaN or infinity.
        InvalidName: a name is not in the product's alphabet.
    """
    known = None if known_base is None else check_bundle(known_base)
    max_positions = terms.max_positions
    if known is not None:
        max_positions = _manifest_of(known).shape.max_positions
    layout = read_config(folder, max_positions=max_positions)
    names = _expert_names(layout, terms)
    papers = _papers(folder, layout)
    source = Source(folder, layout)
    if out.exists() and any(out.iterdir()):
        raise ModelFolderRefused(
            "A model is imported into an empty folder; choose another one.", file=out.name
        )
    meter = Meter(on_progress, source.checkpoint.size_bytes())
    work = _Work(source=source, out=out, terms=terms, meter=meter)
    try:
        (out / _STAGING).mkdir(parents=True)
        base = work.write_base(papers) if known is None else work.compare(known, papers[TOKENIZER_FILE])
        experts = [work.write_expert(base, index, name) for index, name in enumerate(names, start=1)]
    except BaseException:
        for made in ("base", "experts", _STAGING):
            shutil.rmtree(out / made, ignore_errors=True)
        raise
    shutil.rmtree(out / _STAGING)
    return ImportResult(base=base, experts=tuple(experts), layout=layout, notes=_notes(layout))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    """One import under way."""

    source: Source
    out: Path
    terms: ImportTerms
    meter: Meter

    def write_base(self, papers: Mapping[str, bytes]) -> CheckedBundle:
        """Writes and seals the base."""
        terms, files = self.terms, dict[str, Path | bytes](papers)
        digests = {name: digest_bytes(body) for name, body in papers.items()}
        self.meter.begin("base")
        files[BASE_WEIGHTS_FILE], digests[BASE_WEIGHTS_FILE] = self._stage(self.source.base_parts())
        if terms.public_documents:
            path = self.out / _STAGING / CALIBRATION_FILE
            write_documents(path, terms.public_documents)
            files[CALIBRATION_FILE], digests[CALIBRATION_FILE] = path, digest_file(path)
        manifest = BaseManifest(
            name=terms.name,
            shape=self.source.layout.shape,
            tokenizer_digest=digests[TOKENIZER_FILE],
            weights_digest=digests[BASE_WEIGHTS_FILE],
            calibration_digest=digests.get(CALIBRATION_FILE),
            license=terms.license,
            trained_on=terms.trained_on,
            created_at_us=terms.created_at_us,
            code_version=terms.code_version,
            files=digests,
        )
        self.meter.begin("check")
        return write_bundle(self.out / "base", manifest, files, terms.owner_key, take=True)

    def compare(self, known: CheckedBundle, tokenizer: bytes) -> CheckedBundle:
        """Compares what the folder shares with a known base, and returns that base."""
        manifest, shape = _manifest_of(known), self.source.layout.shape
        ours, theirs = manifest.shape.model_dump(), shape.model_dump()
        if differ := [name for name, value in ours.items() if theirs[name] != value]:
            raise SharedPartDiffers(
                f"{differ[0]} is {theirs[differ[0]]} in the folder and {ours[differ[0]]} in the known base.",
                tensor=differ[0],
            )
        if digest_bytes(tokenizer) != manifest.tokenizer_digest:
            raise SharedPartDiffers(
                f"{TOKENIZER_FILE} is not the one of the known base, so token ids may mean other words.",
                tensor=TOKENIZER_FILE,
            )
        self.meter.begin("compare")
        self.source.compare(open_file(known.weights_path.resolve()), self.meter.add)
        return known

    def write_expert(self, base: CheckedBundle, index: int, name: str) -> CheckedBundle:
        """Writes and seals the expert at an index of the folder."""
        terms, shape = self.terms, self.source.layout.shape
        license_ = terms.expert_license or _manifest_of(base).license
        self.meter.begin(f"expert {name}")
        weights, digest = self._stage(self.source.expert_parts(index))
        manifest = ExpertManifest(
            name=name,
            tenant=terms.tenant,
            base_digest=base.digest,
            tokenizer_digest=_manifest_of(base).tokenizer_digest,
            d_ffn=shape.d_ffn,
            gated=False,
            n_layers=shape.n_layers,
            d_model=shape.d_model,
            recipe={"imported": True},
            seeds={},
            data_card=terms.data_cards.get(name) or _unknown_data(license_),
            metrics={},
            files={EXPERT_WEIGHTS_FILE: digest, METRICS_FILE: digest_bytes(b"")},
            created_at_us=terms.created_at_us,
            code_version=terms.code_version,
            torch_version=NO_TRAINING,
            threads=1,
        )
        files: dict[str, Path | bytes] = {EXPERT_WEIGHTS_FILE: weights, METRICS_FILE: b""}
        key = terms.expert_key or terms.owner_key
        self.meter.begin("check")
        return write_bundle(self.out / "experts" / name, manifest, files, key, take=True)

    def _stage(self, parts: Sequence[Part]) -> tuple[Path, str]:
        path = self.out / _STAGING / "weights.safetensors"
        return path, write_safetensors(path, parts, on_bytes=self.meter.add)


def _papers(folder: Path, layout: Layout) -> dict[str, bytes]:
    """The tokenizer and its side files, byte for byte, once the tokenizer is known to be usable."""
    papers = {}
    for name in (TOKENIZER_FILE, *SIDE_FILES):
        body = read_side_file(folder, name, _MAX_SIDE_FILE_BYTES)
        if body is not None:
            papers[name] = body
    if TOKENIZER_FILE not in papers:
        raise ModelFolderRefused(
            f"The folder lacks {TOKENIZER_FILE}; save its tokenizer in the fast format.", file=TOKENIZER_FILE
        )
    for name, body in papers.items():
        try:
            json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ModelFolderRefused(f"{name} is not JSON.", file=name) from error
    highest = TextTokenizer.load(folder / TOKENIZER_FILE).highest_id
    if highest >= layout.shape.vocab_size:
        raise ModelFolderRefused(
            f"The tokenizer has token ids up to {highest}, the model only {layout.shape.vocab_size} rows.",
            file=TOKENIZER_FILE,
        )
    return papers


def _expert_names(layout: Layout, terms: ImportTerms) -> list[str]:
    names = terms.expert_names
    if names is None:
        names = [f"{terms.name}-expert-{number}" for number in range(1, layout.n_experts)]
    if len(names) != layout.n_experts - 1 or len(set(names)) != len(names):
        raise ModelFolderRefused(
            f"The folder holds {layout.n_experts - 1} experts beside the public one; give as many names, all "
            "different.",
            experts=layout.n_experts - 1,
        )
    return [check_name(name, "expert") for name in names]


def _manifest_of(bundle: CheckedBundle) -> BaseManifest:
    if not isinstance(bundle.manifest, BaseManifest):
        raise SharedPartDiffers("The known base is the bundle of an expert.", tensor="manifest.json")
    return bundle.manifest


def _unknown_data(license_: str) -> DataCard:
    return DataCard(
        documents=0,
        text_bytes=0,
        license=license_,
        merkle_root=merkle_root([]),
        description="Imported: what it was trained on was not stated.",
    )


def _notes(layout: Layout) -> tuple[str, ...]:
    shape, kind, notes = layout.shape, layout.architecture, []
    if shape.norm_before and not kind.moe:
        notes.append(
            "The weights of the experts that a token takes are divided by their sum, since this family has "
            "no norm behind the mixture that would make up for the weight of experts left out."
        )
    elif shape.norm_before and not shape.renormalise:
        notes.append(
            "As its config says, the weights of the experts that a token takes are not divided by their sum, "
            "and this family has no norm behind the mixture: an expert added later weakens the others "
            "wherever a token takes fewer experts than there are."
        )
    if kind.moe:
        notes.append(
            f"The folder's config takes {layout.top_k} of {layout.n_experts} experts per token; give a "
            "deployment the same number to compute what the folder computes."
        )
    return tuple(notes)

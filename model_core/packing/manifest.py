# SPDX-License-Identifier: Apache-2.0
"""Packing slips: what a base or an expert is, said without opening its tensors.

A manifest is canonical JSON; its digest is the address of the bundle. Wire law: fields are only ever
added, with defaults; readers ignore fields that they do not know; the digest is always that of the bytes
as received, never of a re-written document, so unknown fields stay covered by it. Knows neither whether
the files beside it are true (bundle.py) nor who vouches for them (seal.py).
"""

from __future__ import annotations

from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model_core.errors import InvalidName, ManifestInvalid, NotCanonical
from model_core.packing.canonical import canonical_bytes, digest_bytes, parse_canonical
from model_core.packing.fields import Count, Digest, FiniteFloat, Name, SafeInt, Text
from model_core.packing.forms import MAX_PIECES, ExpertKind, FfnForm
from model_core.packing.ids import check_file_name

MANIFEST_FILE = "manifest.json"
SEAL_FILE = "seal.json"
BASE_WEIGHTS_FILE = "base.safetensors"
EXPERT_WEIGHTS_FILE = "expert.safetensors"
TOKENIZER_FILE = "tokenizer.json"
CALIBRATION_FILE = "calibration.jsonl"
METRICS_FILE = "metrics.jsonl"

MAX_MANIFEST_BYTES = 1 << 20

# More files than these may be named by later releases, but only as data: weights have one name per kind.
_SIDE_FILE_SUFFIXES = (".json", ".jsonl")

Family = Literal["olmo2", "llama", "olmoe"]


class _Document(BaseModel):
    """A frozen value that crosses processes and years."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ModelShape(_Document):
    """The family and the sizes of a decoder, all in elements (not bytes).

    Attributes:
        family: ``olmo2`` (norms after attention and FFN, full-width QK norms; FlexOlmo too), ``llama`` (norms
            before, no QK norm) or ``olmoe`` (norms before, full-width QK norms).
        n_layers: decoder layers.
        d_model: width of the residual stream (D).
        n_heads: query heads (H).
        n_kv_heads: key and value heads; divides ``n_heads``.
        d_ffn: inner width of the public SwiGLU (F).
        vocab_size: rows of the embedding (V).
        max_positions: longest sequence in tokens.
        rope_theta: base of the rotary frequencies.
        norm_eps: added to the mean square in RMS norms.
        tie_embeddings: whether the output layer is the embedding.
        d_head: width of one attention head where it is not ``d_model / n_heads``.
        renormalise: whether the weights of the experts that a token takes are divided by their sum.
        clip_qkv: bound on the absolute value of queries, keys and values (``olmoe`` only).
    """

    family: Family = "olmo2"
    n_layers: int = Field(ge=1, le=512)
    d_model: int = Field(ge=2, le=65_536)
    n_heads: int = Field(ge=1, le=1024)
    n_kv_heads: int = Field(ge=1, le=1024)
    d_ffn: int = Field(ge=1, le=1_048_576)
    vocab_size: int = Field(ge=1, le=4_194_304)
    max_positions: int = Field(ge=1, le=16_777_216)
    rope_theta: float = Field(gt=0, allow_inf_nan=False)
    norm_eps: float = Field(gt=0, lt=1, allow_inf_nan=False)
    tie_embeddings: bool = False
    d_head: int | None = Field(default=None, ge=2, le=65_536)
    renormalise: bool = False
    clip_qkv: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_head is None and self.d_model % (2 * self.n_heads):
            raise ValueError("d_model must be a multiple of 2 * n_heads (rotary pairs)")
        if self.d_head is not None and (self.d_head % 2 or self.d_head * self.n_heads == self.d_model):
            raise ValueError("d_head must be even, and is given only where it is not d_model / n_heads")
        if self.n_heads % self.n_kv_heads:
            raise ValueError("n_heads must be a multiple of n_kv_heads")
        if self.clip_qkv is not None and self.family != "olmoe":
            raise ValueError("clip_qkv is known of the olmoe family only")
        return self

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads if self.d_head is None else self.d_head

    @property
    def norm_before(self) -> bool:
        """Whether attention and mixture read a normed residual (else their outputs are normed)."""
        return self.family != "olmo2"

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normed over their full projected width."""
        return self.family != "llama"


class DataCard(_Document):
    """What an expert was trained on, in counts and dates; never text.

    Attributes:
        documents: how many documents.
        text_bytes: their UTF-8 size in bytes.
        tokens: their length in tokens of the base's tokenizer, if counted.
        languages: BCP 47 tags.
        collected_from: first day of collection, ISO 8601 date.
        collected_to: last day of collection, ISO 8601 date.
        license: SPDX expression of the data.
        merkle_root: root over the documents' digests.
        description: the owner's words.
    """

    documents: Count
    text_bytes: Count
    tokens: Count | None = None
    languages: tuple[str, ...] = ()
    collected_from: str | None = None
    collected_to: str | None = None
    license: str = Field(min_length=1, max_length=1000)
    merkle_root: Digest
    description: Text = ""


class _Manifest(_Document):
    """What both kinds of packing slip have in common."""

    schema_version: int = Field(default=1, ge=1)
    name: Name
    files: dict[str, Digest]
    created_at_us: Count
    code_version: Text

    @model_validator(mode="after")
    def _files_are_plain(self) -> Self:
        if len(self.files) > 64:
            raise ValueError("files: at most 64")
        for file_name in self.files:
            try:
                check_file_name(file_name, "file of a bundle")
            except InvalidName as error:
                raise ValueError(f"files: {error.sentence}") from error
            if file_name in (MANIFEST_FILE, SEAL_FILE):
                raise ValueError(f"files: {file_name} cannot name itself")
            if file_name not in self.required_files() and not file_name.endswith(_SIDE_FILE_SUFFIXES):
                raise ValueError(f"files: {file_name} is not a file of this kind of bundle")
        if missing := sorted(self.required_files() - self.files.keys()):
            raise ValueError(f"files: {', '.join(missing)} missing")
        return self

    def required_files(self) -> frozenset[str]:
        """The names that ``files`` must hold."""
        raise NotImplementedError

    def to_bytes(self) -> bytes:
        """The canonical bytes, as they stand in ``manifest.json``.

        Raises:
            NotCanonical: a value has no canonical form (an integer beyond 2**53 in a recipe).
        """
        return canonical_bytes(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """The bundle's address: the digest of the canonical bytes.

        Holds for manifests written by this release; for one that was read, use the digest of the bytes
        read (``check_bundle`` returns it), since fields unknown to this release are not kept here.
        """
        return digest_bytes(self.to_bytes())


class BaseManifest(_Manifest):
    """The packing slip of a base: the frozen public model that experts attach to.

    Attributes:
        schema_version: of this document.
        name: what people call it.
        shape: its sizes.
        tokenizer_digest: digest of ``tokenizer.json``.
        weights_digest: digest of ``base.safetensors``.
        calibration_digest: digest of the public calibration text, if there is one.
        license: SPDX expression.
        trained_on: what the public text was, in a sentence.
        created_at_us: microseconds since the Unix epoch, UTC.
        code_version: of the product that trained it.
        files: file name → digest, for every file but the manifest and the seal.
    """

    kind: Literal["base"] = "base"
    shape: ModelShape
    tokenizer_digest: Digest
    weights_digest: Digest
    calibration_digest: Digest | None = None
    license: str = Field(min_length=1, max_length=1000)
    trained_on: Text

    def required_files(self) -> frozenset[str]:
        """Weights and tokenizer, and the calibration text when the manifest names one."""
        calibration = {CALIBRATION_FILE} if self.calibration_digest is not None else set()
        return frozenset({BASE_WEIGHTS_FILE, TOKENIZER_FILE} | calibration)

    @model_validator(mode="after")
    def _digests_agree(self) -> Self:
        named = {
            BASE_WEIGHTS_FILE: self.weights_digest,
            TOKENIZER_FILE: self.tokenizer_digest,
            CALIBRATION_FILE: self.calibration_digest,
        }
        for file_name, digest in named.items():
            if self.files.get(file_name) != digest:
                raise ValueError(f"files: {file_name} differs from the digest named beside it")
        return self


class ExpertManifest(_Manifest):
    """The packing slip of one version of one tenant's expert.

    Attributes:
        schema_version: of this document.
        name: what its owner calls it.
        tenant: the owner's slug.
        base_digest: the base that it was trained against and only fits.
        tokenizer_digest: of that base's tokenizer.
        expert_kind: form of its networks (``model_core.packing.forms``).
        d_ffn: inner width of the expert's SwiGLU (F).
        rank: of a low-rank expert's factors.
        pieces: of a split expert.
        gated: whether it brings domain gates; without them its bundle holds no gate tensors.
        n_layers: as the base.
        d_model: as the base (D).
        recipe: training settings, flat.
        seeds: every seed that the run used.
        data_card: what it was trained on.
        metrics: final figures (bits per byte and so on).
        calibration: figures of the calibration against the public expert.
        files: file name → digest, for every file but the manifest and the seal.
        created_at_us: microseconds since the Unix epoch, UTC.
        code_version: of the product that trained it.
        torch_version: that trained it.
        threads: compute threads, since sums depend on them.
    """

    kind: Literal["expert"] = "expert"
    tenant: Name
    base_digest: Digest
    tokenizer_digest: Digest
    expert_kind: ExpertKind = "full"
    d_ffn: int = Field(ge=1, le=1_048_576)
    rank: int | None = Field(default=None, ge=1, le=1_048_576)
    pieces: int | None = Field(default=None, ge=1, le=MAX_PIECES)
    gated: bool = True
    n_layers: int = Field(ge=1, le=512)
    d_model: int = Field(ge=2, le=65_536)
    recipe: dict[str, bool | SafeInt | FiniteFloat | str]
    seeds: dict[str, SafeInt]
    data_card: DataCard
    metrics: dict[str, FiniteFloat]
    calibration: dict[str, FiniteFloat] = Field(default_factory=dict)
    torch_version: str
    threads: int = Field(ge=1)

    def required_files(self) -> frozenset[str]:
        """Weights and the metrics of the run."""
        return frozenset({EXPERT_WEIGHTS_FILE, METRICS_FILE})

    @property
    def form(self) -> FfnForm:
        """How the expert's networks are stored."""
        return FfnForm(kind=self.expert_kind, d_ffn=self.d_ffn, rank=self.rank, pieces=self.pieces)

    @model_validator(mode="after")
    def _form_is_possible(self) -> Self:
        if problem := self.form.problem(self.d_model):
            raise ValueError(problem)
        return self


Manifest = BaseManifest | ExpertManifest
_AnyManifest = TypeVar("_AnyManifest", BaseManifest, ExpertManifest)


def parse_base_manifest(data: bytes) -> BaseManifest:
    """Reads a base's manifest from its canonical bytes.

    Raises:
        ManifestInvalid: not canonical JSON, or fields are missing or impossible (``facts["fields"]``).
    """
    _kind_of(data)
    return _validate(BaseManifest, data)


def parse_expert_manifest(data: bytes) -> ExpertManifest:
    """Reads an expert's manifest from its canonical bytes.

    Raises:
        ManifestInvalid: not canonical JSON, or fields are missing or impossible (``facts["fields"]``).
    """
    _kind_of(data)
    return _validate(ExpertManifest, data)


def parse_manifest(data: bytes) -> Manifest:
    """Reads either kind of manifest, told apart by its ``kind`` field.

    Raises:
        ManifestInvalid: not canonical JSON, of unknown kind, or with missing or impossible fields.
    """
    match _kind_of(data):
        case "base":
            return _validate(BaseManifest, data)
        case "expert":
            return _validate(ExpertManifest, data)
        case _:
            raise ManifestInvalid('The manifest\'s kind must be "base" or "expert".', fields=["kind"])


def _kind_of(data: bytes) -> object:
    """What the manifest says it is, once its bytes are known to be canonical."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestInvalid(f"The manifest is larger than {MAX_MANIFEST_BYTES} bytes.", fields=[])
    try:
        fields = parse_canonical(data)
    except NotCanonical as error:
        raise ManifestInvalid(f"The manifest cannot be read: {error.sentence}", fields=[]) from error
    if not isinstance(fields, dict):
        raise ManifestInvalid("The manifest is not a JSON object.", fields=[])
    if "kind" not in fields:
        raise ManifestInvalid("The manifest does not say its kind.", fields=["kind"])
    return fields["kind"]


def _validate(kind: type[_AnyManifest], data: bytes) -> _AnyManifest:
    try:
        return kind.model_validate_json(data, strict=True)  # strict: "8" is no number, 1 is no truth value
    except ValidationError as error:
        # The values themselves are left out: they are untrusted and may be long.
        wrong = {".".join(map(str, item["loc"])) or "files": item["msg"] for item in error.errors()}
        listed = "; ".join(f"{name[:80]}: {why[:200]}" for name, why in list(wrong.items())[:8])
        raise ManifestInvalid(
            f"The manifest has missing or impossible fields: {listed}.",
            fields=sorted(name[:80] for name in wrong)[:64],
        ) from error

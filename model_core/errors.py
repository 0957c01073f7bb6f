# SPDX-License-Identifier: Apache-2.0

"""What can go wrong with weights, and the root of every family of errors.

Tree::

    ProductError                 root of all floors; carries a stable code and a sentence
    └── ModelCoreError           family of this floor
        ├── TextError            data sets and tokenizers
        │   ├── DatasetRefused     a file that is not a data set, or too small to train on
        │   └── TokenizerInvalid   a tokenizer that cannot be read or lacks the end-of-text token
        ├── TrainingError        recipes, runs and their checkpoints
        │   ├── RecipeRefused      a setting outside its bounds
        │   ├── TrainingDiverged   the loss is not finite or has run away
        │   └── CheckpointInvalid  a checkpoint that is not of this run
        ├── PackingError         ids, canonical bytes, manifests, keys, seals, bundles and stores
        │   ├── InvalidName      a name or id that is not in the product's alphabet
        │   ├── InvalidDigest    not "sha256:" and 64 hex digits
        │   ├── NotCanonical     a value or bytes that RFC 8785 cannot or did not write
        │   ├── ManifestInvalid  a packing slip with missing or impossible fields
        │   ├── KeyInvalid       a signing key that cannot be read or is readable by others
        │   ├── SealMissing      no seal, or the owner's or the admission's signature is absent
        │   ├── SignatureInvalid a signature that does not verify
        │   ├── UntrustedKey     a signature by a key that nobody vouched for
        │   ├── DigestMismatch   bytes that are not those that a digest names
        │   ├── BundleRefused    a folder that is not the bundle its manifest describes
        │   │   ├── BundleCorrupt  BundleMissingFile  BundleExtraFile  BundleUnsafePath
        │   │   └── BundleTooLarge BundleWrongShape  BundleNotSafetensors  BundleWrongBase
        │   ├── ArtifactNotFound the store holds no bundle of that digest
        │   └── StoreUnavailable the store's disk or server refused to answer
        ├── AdmissionRefused     what only a forward pass shows of a stranger's expert
        │   ├── RouterRowTooLong ExpertTooLoud  ExpertOverflows  ShareAboveCalibration
        │   └── PublicTextWorse  ReportInvalid
        ├── NetworkError         tensors and the expert bank
        │   ├── TensorsNotFinite NaN or infinity where weights should be
        │   ├── TensorsOutOfRange  a scale of integer weights that is not above 0
        │   ├── ExpertNotResident  an expert that the bank does not hold, or no longer
        │   └── RouterNeedsRedo  router rows that were tuned for other members
        ├── InteropError         models that come in from other layouts, or leave in them
        │   ├── ConfigUnsupported  a config field with a value that this decoder does not compute
        │   ├── ModelFolderRefused  a folder whose files or tensors are not those of its config
        │   ├── SharedPartDiffers  a tensor or file of the folder is not that of the known base
        │   └── ExportNotExact     what the plain layout cannot hold without loss
        └── EngineError          the serving engine
            ├── EngineFull       no room for another sequence now
            ├── RequestRefused   a request that this engine can never run
            ├── UnknownRequest   no such sequence (finished, cancelled or never submitted)
            ├── StateKeyMismatch a state computed under other experts was about to be read
            ├── StepPending      a step was begun before the last one was committed or discarded
            ├── RanksRefused     a number of processes over which the base cannot be spread
            └── RankLost         one of the processes that compute together has ended or does not answer

Other floors hang their own family below ``ProductError`` in their own ``errors.py``. A code is API: it
never changes once released. The sentence says what happened and what to do next, and never holds a
secret, a prompt or a path outside the caller's own folders.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self


class ProductError(Exception):
    """An expected refusal with a stable code, a sentence for people and facts for programs.

    Args:
        sentence: what happened and what to do next, one or two sentences.
        **facts: JSON-able details, kept through pickling.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, sentence: str, **facts: Any) -> None:
        super().__init__(sentence, facts)
        self.sentence = sentence
        self.facts = facts

    def __str__(self) -> str:
        return self.sentence

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.sentence, self.facts))

    @classmethod
    def rebuild(cls, sentence: str, facts: dict[str, Any]) -> Self:
        """Makes the error anew from its two fields (used when it crosses a process)."""
        return cls(sentence, **facts)


def _rebuild(kind: type[ProductError], sentence: str, facts: dict[str, Any]) -> ProductError:
    return kind.rebuild(sentence, facts)


class ModelCoreError(ProductError):
    """Family of the tensor floor."""

    code = "model_core"


class PackingError(ModelCoreError):
    """Family of packing: everything that names, seals and stores weights without touching tensors."""

    code = "packing"


class InvalidName(PackingError):
    """A name, id or file name is not in the product's alphabet."""

    code = "invalid_name"


class InvalidDigest(PackingError):
    """A string is not a digest as ``sha256:<64 hex digits>``."""

    code = "invalid_digest"


class NotCanonical(PackingError):
    """A value has no RFC 8785 form, or bytes are not in that form."""

    code = "not_canonical"


class ManifestInvalid(PackingError):
    """A manifest misses fields or holds impossible ones; ``facts["fields"]`` names them."""

    code = "manifest_invalid"


class KeyInvalid(PackingError):
    """A signing key cannot be read, or people other than its owner could read it."""

    code = "key_invalid"


class SealMissing(PackingError):
    """The seal, or a signature that this use requires, is absent."""

    code = "seal_missing"


class SignatureInvalid(PackingError):
    """A signature does not verify over the bytes that it claims."""

    code = "signature_invalid"


class UntrustedKey(PackingError):
    """A signature is by a key outside the trusted ones."""

    code = "untrusted_key"


class DigestMismatch(PackingError):
    """Bytes differ from those that a digest names."""

    code = "digest_mismatch"


class BundleRefused(PackingError):
    """A folder is not the bundle that its manifest describes (family of the reasons why)."""

    code = "bundle_refused"


class BundleCorrupt(BundleRefused):
    """A file of the bundle differs from its digest, or the manifest or seal cannot be read."""

    code = "bundle_corrupt"


class BundleMissingFile(BundleRefused):
    """The bundle lacks a file that its manifest names."""

    code = "bundle_missing_file"


class BundleExtraFile(BundleRefused):
    """The bundle holds a file that its manifest does not name."""

    code = "bundle_extra_file"


class BundleUnsafePath(BundleRefused):
    """The bundle holds a link, a device, a folder or a name that leaves its folder."""

    code = "bundle_unsafe_path"


class BundleTooLarge(BundleRefused):
    """A file is larger than the limit of its kind."""

    code = "bundle_too_large"


class BundleWrongShape(BundleRefused):
    """A tensor is missing, unknown, or has another shape or dtype than the manifest implies."""

    code = "bundle_wrong_shape"


class BundleNotSafetensors(BundleRefused):
    """A weights file is not a well-formed safetensors file (a pickle, truncated, overlapping)."""

    code = "bundle_not_safetensors"


class BundleWrongBase(BundleRefused):
    """An expert was made for another base, tokenizer or shape."""

    code = "bundle_wrong_base"


class ArtifactConflict(PackingError):
    """The same bundle is stored with another seal; a stored bundle never changes."""

    code = "artifact_conflict"


class ArtifactNotFound(PackingError):
    """The store holds no bundle of that digest."""

    code = "artifact_not_found"


class StoreUnavailable(PackingError):
    """The store's disk or server failed; trying again later may help."""

    code = "store_unavailable"


class TextError(ModelCoreError):
    """Family of data sets and tokenizers."""

    code = "text"


class DatasetRefused(TextError):
    """A file that is not a data set, or is too small to train on."""

    code = "dataset_refused"


class TokenizerInvalid(TextError):
    """A tokenizer that cannot be read or lacks what the product needs."""

    code = "tokenizer_invalid"


class TrainingError(ModelCoreError):
    """Family of recipes, runs and their checkpoints."""

    code = "training"


class RecipeRefused(TrainingError):
    """A training setting outside its bounds."""

    code = "recipe_refused"


class TrainingDiverged(TrainingError):
    """The loss is not finite, or has run far above where it started."""

    code = "training_diverged"


class CheckpointInvalid(TrainingError):
    """A checkpoint that cannot be read or is not of this run."""

    code = "checkpoint_invalid"


class AdmissionRefused(ModelCoreError):
    """An expert does to public text what admission does not allow (family of the reasons why)."""

    code = "admission_refused"


class RouterRowTooLong(AdmissionRefused):
    """A router row can give text of typical length a logit above the bound; ``facts`` name the layer."""

    code = "router_row_too_long"


class ExpertTooLoud(AdmissionRefused):
    """An expert puts out so much more than the public one that a small routing weight does not bound it."""

    code = "expert_too_loud"


class ExpertOverflows(AdmissionRefused):
    """Finite weights compute something that is no number."""

    code = "expert_overflows"


class ShareAboveCalibration(AdmissionRefused):
    """An expert takes more of public text than its manifest declares, or than anybody may."""

    code = "share_above_calibration"


class PublicTextWorse(AdmissionRefused):
    """Beside the expert the base predicts public text worse than is admitted."""

    code = "public_text_worse"


class ReportInvalid(AdmissionRefused):
    """The report of a weighing cannot be read, or holds impossible figures."""

    code = "weighing_report_invalid"


class NetworkError(ModelCoreError):
    """Family of tensors and of the expert bank."""

    code = "network"


class TensorsNotFinite(NetworkError):
    """A weights file holds NaN or infinity; ``facts["tensors"]`` names where."""

    code = "tensors_not_finite"


class TensorsOutOfRange(NetworkError):
    """A scale that multiplies integer weights is zero or negative; ``facts["tensors"]`` names where."""

    code = "tensors_out_of_range"


class ExpertNotResident(NetworkError):
    """The bank holds no expert of that digest, or holds it no longer."""

    code = "expert_not_resident"


class RouterNeedsRedo(NetworkError):
    """Router rows were tuned for other members than those of the composition."""

    code = "router_needs_redo"


class InteropError(ModelCoreError):
    """Family of bringing models in from other layouts and taking compositions out in them."""

    code = "interop"


class ConfigUnsupported(InteropError):
    """A model's config asks for what this decoder does not compute; ``facts`` name field and value."""

    code = "config_unsupported"


class ModelFolderRefused(InteropError):
    """A model folder lacks files or tensors, holds unknown ones, or is no safetensors checkpoint."""

    code = "model_folder_refused"


class SharedPartDiffers(InteropError):
    """A tensor or file that the folder shares with a known base is not the base's."""

    code = "shared_part_differs"


class ExportNotExact(InteropError):
    """The plain layout cannot hold this composition exactly; ``facts["reasons"]`` say what it cannot."""

    code = "export_not_exact"


class EngineError(ModelCoreError):
    """Family of the serving engine."""

    code = "engine"


class EngineFull(EngineError):
    """Every place for a sequence is taken; trying again later will help."""

    code = "engine_full"


class RequestRefused(EngineError):
    """A request that this engine can never run as it is (too long, empty, impossible sampling)."""

    code = "request_refused"


class UnknownRequest(EngineError):
    """No running sequence has that request id."""

    code = "unknown_request"


class StateKeyMismatch(EngineError):
    """A state computed under one expert set was about to be read under another; it was not read."""

    code = "state_key_mismatch"


class StepPending(EngineError):
    """A step was begun, or the engine changed, while a step waits for ``commit`` or ``discard``."""

    code = "step_pending"


class RanksRefused(EngineError):
    """The base cannot be spread over so many processes."""

    code = "ranks_refused"


class RankLost(EngineError):
    """One of the processes that compute together has ended, failed or not answered; all were ended."""

    code = "rank_lost"

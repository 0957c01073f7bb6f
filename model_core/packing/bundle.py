# SPDX-License-Identifier: Apache-2.0
"""Bundles: a folder of weights and papers, written whole and checked before anybody loads it.

The check opens every file without following links, compares it with the digest that the sealed manifest
names, and compares the tensors' names, shapes and dtypes with those that the manifest implies, all without
a tensor library. Knows neither whether the weights are finite or fair nor where bundles are kept.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from model_core.errors import (
    BundleCorrupt,
    BundleExtraFile,
    BundleMissingFile,
    BundleUnsafePath,
    BundleWrongBase,
    BundleWrongShape,
    DigestMismatch,
    SealMissing,
    TensorsNotFinite,
    TensorsOutOfRange,
)
from model_core.packing.canonical import digest_bytes
from model_core.packing.files import (
    copy_plain_file,
    digest_stream,
    open_plain_file,
    read_file,
    sync_folder,
    write_new_file,
)
from model_core.packing.finite import rotten_tensors, tensors_not_above_zero
from model_core.packing.forms import WEIGHT_DTYPES
from model_core.packing.ids import new_id
from model_core.packing.keys import SigningKey
from model_core.packing.manifest import (
    BASE_WEIGHTS_FILE,
    EXPERT_WEIGHTS_FILE,
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    SEAL_FILE,
    BaseManifest,
    ExpertManifest,
    Manifest,
    parse_manifest,
)
from model_core.packing.safetensors_header import read_header
from model_core.packing.seal import (
    MAX_SEAL_BYTES,
    Seal,
    TrustedKeys,
    countersign,
    make_seal,
    parse_seal,
    verify_seal,
)
from model_core.packing.tensors import base_tensors, expert_tensors

_MAX_ENTRIES = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleLimits:
    """The largest files that are looked at.

    Attributes:
        weights_bytes: of a safetensors file.
        side_file_bytes: of every other file (tokenizer, metrics, calibration text).
    """

    weights_bytes: int = 64 << 30
    side_file_bytes: int = 256 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedBundle:
    """A bundle whose every byte was compared with its digest.

    Attributes:
        folder: where it lies.
        digest: its address: the digest of the manifest's bytes as they are.
        manifest: what it is.
        seal: who vouches for it.
    """

    folder: Path
    digest: str
    manifest: Manifest
    seal: Seal

    @property
    def weights_path(self) -> Path:
        """The safetensors file."""
        is_base = isinstance(self.manifest, BaseManifest)
        return self.folder / (BASE_WEIGHTS_FILE if is_base else EXPERT_WEIGHTS_FILE)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Papers:
    """Manifest and seal, read but not yet compared with the files."""

    digest: str
    manifest: Manifest
    seal: Seal = field(repr=False)


def write_bundle(
    folder: Path,
    manifest: Manifest,
    files: Mapping[str, Path | bytes],
    owner_key: SigningKey,
    *,
    take: bool = False,
) -> CheckedBundle:
    """Writes a bundle into a new folder, sealed by its owner, and checks what was written.

    The digests in ``manifest.files`` must be those of ``files`` (``digest_file``, ``digest_bytes``). What is
    written first is a draft: the manifest comes last, so an interrupted write is never taken for a bundle.

    Args:
        folder: must not exist or be empty; its parents are made.
        manifest: the packing slip.
        files: file name → a file to copy or its bytes, for every name in ``manifest.files``.
        owner_key: the owner's pair.
        take: move files instead of copying them; they must lie on the folder's own disk.

    Raises:
        BundleExtraFile: the folder is not empty, or ``files`` holds a name that the manifest does not.
        BundleMissingFile: ``files`` lacks a name of the manifest.
        BundleRefused: the written bundle does not pass ``check_bundle``.
        NotCanonical: the manifest has no canonical form.
    """
    _compare_names(set(files), set(manifest.files))
    manifest_bytes = manifest.to_bytes()
    seal = make_seal(digest_bytes(manifest_bytes), manifest.files, owner_key)
    folder.mkdir(parents=True, exist_ok=True)
    if present := sorted(entry.name for entry in folder.iterdir()):
        raise BundleExtraFile(
            "A bundle is written into an empty folder; choose another one.", files=present[:16]
        )
    for name, source in files.items():
        if isinstance(source, bytes):
            write_new_file(folder / name, source)
        elif take:
            source.rename(folder / name)
        else:
            copy_plain_file(source, folder / name)
    write_new_file(folder / SEAL_FILE, seal.to_bytes())
    write_new_file(folder / MANIFEST_FILE, manifest_bytes)
    return check_bundle(folder)


def check_bundle(
    folder: Path,
    *,
    expect_digest: str | None = None,
    trusted: TrustedKeys | None = None,
    limits: BundleLimits | None = None,
) -> CheckedBundle:
    """Checks a folder from outside in: names, manifest, seal, digests, then the shapes of tensors.

    Args:
        folder: the bundle.
        expect_digest: the address that it must have.
        trusted: pass it before serving: then both signatures must be there and by these keys. Without it
            the owner's signature must be there, and signatures must verify against their own keys only.
        limits: sizes of files.

    Raises:
        BundleRefused: one of its subclasses says what is wrong with a file.
        ManifestInvalid: the manifest cannot be read.
        DigestMismatch: it is another bundle than expected, or the seal is for another one.
        SealMissing: the seal or a required signature is absent.
        SignatureInvalid: a signature does not verify.
        UntrustedKey: a signature by a key outside the trusted ones.
    """
    limits = limits or BundleLimits()
    names = _list_files(folder)
    papers = _read_papers(folder, names, expect_digest)
    verify_seal(papers.seal, papers.manifest, papers.digest, trusted)
    _compare_names(names - {MANIFEST_FILE, SEAL_FILE}, set(papers.manifest.files))
    weights = BASE_WEIGHTS_FILE if isinstance(papers.manifest, BaseManifest) else EXPERT_WEIGHTS_FILE
    # Small files first: a bundle that is refused for one of them costs no reading of the weights.
    for name, digest in sorted(papers.manifest.files.items(), key=lambda item: item[0] == weights):
        limit_bytes = limits.weights_bytes if name == weights else limits.side_file_bytes
        with open_plain_file(folder / name, limit_bytes) as (stream, size_bytes):
            if digest_stream(stream) != digest:
                raise BundleCorrupt(
                    f"{name} is not the file that the manifest names; fetch or make the bundle again.",
                    file=name,
                )
            if name == weights:
                _check_tensors(stream, size_bytes, papers.manifest)
    return CheckedBundle(folder=folder, digest=papers.digest, manifest=papers.manifest, seal=papers.seal)


def reseal_bundle(folder: Path, owner_key: SigningKey) -> CheckedBundle:
    """Checks a bundle and puts another owner's signature in the place of all that its seal bears.

    For bundles whose sender proved by other means to speak for the owner. The manifest, and with it the
    bundle's address, stay as they are.

    Raises:
        PackingError: as ``check_bundle``; the seal is then left as it was.
    """
    checked = check_bundle(folder)
    return _replace_seal(checked, make_seal(checked.digest, checked.manifest.files, owner_key))


def countersign_bundle(folder: Path, admission_key: SigningKey) -> CheckedBundle:
    """Checks a bundle and adds admission's signature to its seal; call it once admission is content.

    Raises:
        PackingError: as ``check_bundle``; the seal is then left as it was.
    """
    checked = check_bundle(folder)
    return _replace_seal(checked, countersign(checked.seal, admission_key, checked.manifest))


def _replace_seal(checked: CheckedBundle, seal: Seal) -> CheckedBundle:
    folder = checked.folder
    draft = folder.parent / f".{new_id('seal')}"  # beside the folder: a crash leaves no extra file inside
    try:
        write_new_file(draft, seal.to_bytes())
        draft.replace(folder / SEAL_FILE)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(folder)
    return replace(checked, seal=seal)


def check_fits_base(expert: ExpertManifest, base: BaseManifest, base_digest: str) -> None:
    """Checks that an expert was made for this very base and can stand beside its networks.

    Raises:
        BundleWrongBase: another base, tokenizer, depth or width.
        BundleWrongShape: networks of a form that cannot stand beside the base's.
    """
    pairs = {
        "base_digest": (expert.base_digest, base_digest),
        "tokenizer_digest": (expert.tokenizer_digest, base.tokenizer_digest),
        "n_layers": (expert.n_layers, base.shape.n_layers),
        "d_model": (expert.d_model, base.shape.d_model),
    }
    if wrong := [name for name, (theirs, ours) in pairs.items() if theirs != ours]:
        raise BundleWrongBase(
            f"The expert was made for another base ({', '.join(wrong)} differ); train it against this one.",
            fields=wrong,
        )
    if misfit := expert.form.misfit(base.shape.d_ffn):
        raise BundleWrongShape(f"The expert's networks do not fit the base: {misfit}.", tensors=[])


def _list_files(folder: Path) -> set[str]:
    """The names in a folder of plain files only."""
    try:
        if folder.is_symlink():
            raise BundleUnsafePath("The bundle's folder is a link; pass the folder itself.")
        with os.scandir(folder) as entries:
            names: set[str] = set()
            for entry in entries:
                if not entry.is_file(follow_symlinks=False):
                    raise BundleUnsafePath(
                        f"{entry.name[:80]!r} in the bundle is a link, a folder or a device.",
                        file=entry.name[:80],
                    )
                names.add(entry.name)
                if len(names) > _MAX_ENTRIES:
                    raise BundleExtraFile(f"The bundle holds more than {_MAX_ENTRIES} files.")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleMissingFile("There is no bundle folder there.", file=MANIFEST_FILE) from error
    return names


def _read_papers(folder: Path, names: set[str], expect_digest: str | None) -> _Papers:
    if MANIFEST_FILE not in names:
        raise BundleMissingFile(f"The bundle lacks {MANIFEST_FILE}.", file=MANIFEST_FILE)
    manifest_bytes = read_file(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    digest = digest_bytes(manifest_bytes)
    if expect_digest is not None and digest != expect_digest:
        raise DigestMismatch(
            "The manifest is not the one that the digest names.", expected=expect_digest, found=digest
        )
    manifest = parse_manifest(manifest_bytes)
    if SEAL_FILE not in names:
        raise SealMissing(f"The bundle lacks {SEAL_FILE}; its owner must seal it.", role="owner")
    return _Papers(
        digest=digest, manifest=manifest, seal=parse_seal(read_file(folder / SEAL_FILE, MAX_SEAL_BYTES))
    )


def _compare_names(present: set[str], expected: set[str]) -> None:
    if extra := sorted(present - expected):
        raise BundleExtraFile(
            f"The bundle holds files that its manifest does not name: {', '.join(extra)[:200]}.",
            files=extra[:16],
        )
    if missing := sorted(expected - present):
        raise BundleMissingFile(f"The bundle lacks {', '.join(missing)[:200]}.", files=missing[:16])


def _check_tensors(stream: BinaryIO, size_bytes: int, manifest: Manifest) -> None:
    """Compares the weights with what the manifest implies: names, shapes, dtypes, and values at last."""
    header = read_header(stream, size_bytes)
    is_base = isinstance(manifest, BaseManifest)
    expected = base_tensors(manifest) if isinstance(manifest, BaseManifest) else expert_tensors(manifest)
    found = header.shapes()
    wrong = sorted(
        name
        for name in found.keys() | expected.keys()
        if name not in found or name not in expected or found[name] != expected[name].shape
    )
    if wrong:
        raise BundleWrongShape(
            f"{len(wrong)} tensors are missing, unknown or of another shape than the manifest implies, first "
            f"{wrong[0][:80]!r}.",
            tensors=[name[:80] for name in wrong[:16]],
        )
    for name, entry in header.tensors.items():
        if entry.dtype not in expected[name].dtypes:
            raise BundleWrongShape(
                f"{name} has dtype {entry.dtype}, which is not accepted for it.", tensors=[name]
            )
    weights = {
        entry.dtype for name, entry in header.tensors.items() if expected[name].dtypes == WEIGHT_DTYPES
    }
    if not is_base and len(weights) > 1:
        raise BundleWrongShape(
            f"The weights mix the dtypes {', '.join(sorted(weights))}; an expert has one.", tensors=[]
        )
    if rotten := rotten_tensors(stream, header):
        raise TensorsNotFinite(
            f"The weights hold NaN or infinity, first in {rotten[0][:80]!r}. Train the expert again.",
            tensors=rotten[:16],
        )
    positive = [name for name, spec in expected.items() if spec.positive]
    if low := tensors_not_above_zero(stream, header, positive):
        raise TensorsOutOfRange(
            f"A scale of integer weights is not above 0, first in {low[0][:80]!r}. Quantise it again.",
            tensors=low[:16],
        )

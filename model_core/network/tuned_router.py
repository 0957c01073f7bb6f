# SPDX-License-Identifier: Apache-2.0
"""Router rows that were tuned for one set of members: the value, its two files, and when it may be used.

The public expert's row belongs to the frozen base and is never replaced. Softmax does not see a shift that
all logits share, so whatever tuning moved the public row is taken off every member's row instead: the same
shares from the same base. A composition without exactly these members runs the members' own rows, whose
removal is exact, until somebody tunes again. This module does not tune (``training.tuning`` does).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from model_core.errors import (
    BundleNotSafetensors,
    BundleWrongShape,
    DigestMismatch,
    RouterNeedsRedo,
    TensorsNotFinite,
)
from model_core.network.expert import Expert
from model_core.network.finite import not_finite
from model_core.packing.canonical import digest_bytes
from model_core.packing.files import read_file, write_new_file
from model_core.packing.manifest import MAX_MANIFEST_BYTES
from model_core.packing.tuned_router import (
    TUNED_ROUTER_FILE,
    TUNED_ROUTER_WEIGHTS_FILE,
    RouterVariant,
    TunedRouterManifest,
    parse_tuned_router_manifest,
    router_label,
)

_MAX_WEIGHTS_BYTES = 8 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedRouter:
    """Tuned rows with their manifest.

    Attributes:
        manifest: for whom they hold and how they were made.
        rows: member's bundle digest → rows ``[L, D]``, fp32, against the base's own public row.
    """

    manifest: TunedRouterManifest
    rows: Mapping[str, Tensor]

    @property
    def digest(self) -> str:
        """The address: digest of the manifest, which names the rows' digest."""
        return self.manifest.digest

    @property
    def members(self) -> tuple[str, ...]:
        """Bundle digests of the members that it holds for, ascending."""
        return self.manifest.members


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterChoice:
    """What a composition routes with.

    Attributes:
        experts: the members in canonical order, with the rows that apply.
        variant: ``tuned`` if the tuned rows apply, else ``gated``: every member's own rows and gates.
        needs_redo: whether a tuned router was wanted, but was made for other members.
        tuned_digest: of the tuned router in use.
    """

    experts: dict[str, Expert]
    variant: RouterVariant
    needs_redo: bool
    tuned_digest: str | None

    @property
    def label(self) -> dict[str, str]:
        """How the composition names its router."""
        return router_label(self.variant, tuned_digest=self.tuned_digest)


def rows_to_bytes(rows: Mapping[str, Tensor]) -> bytes:
    """The bytes of ``tuned-router.safetensors``; equal rows give equal bytes."""
    return bytes(
        save(
            {
                f"rows.{place}": rows[member].detach().to(device="cpu", dtype=torch.float32).contiguous()
                for place, member in enumerate(sorted(rows))
            }
        )
    )


def save_tuned_router(tuned: TunedRouter, folder: Path) -> None:
    """Writes the two files into a folder that holds neither."""
    folder.mkdir(parents=True, exist_ok=True)
    write_new_file(folder / TUNED_ROUTER_WEIGHTS_FILE, rows_to_bytes(tuned.rows))
    write_new_file(folder / TUNED_ROUTER_FILE, tuned.manifest.to_bytes())


def load_tuned_router(folder: Path, *, expect_digest: str) -> TunedRouter:
    """Reads a tuned router whose digest somebody vouches for; nothing is parsed before digests agree.

    Args:
        folder: holds the two files.
        expect_digest: of the manifest.

    Raises:
        DigestMismatch: the manifest or the rows are not those that the digest names.
        ManifestInvalid: the manifest cannot be read.
        BundleNotSafetensors, BundleWrongShape, TensorsNotFinite: the rows are not what it describes.
    """
    slip = read_file(folder / TUNED_ROUTER_FILE, MAX_MANIFEST_BYTES)
    _insist(slip, expect_digest, TUNED_ROUTER_FILE)
    manifest = parse_tuned_router_manifest(slip)
    body = read_file(folder / TUNED_ROUTER_WEIGHTS_FILE, _MAX_WEIGHTS_BYTES)
    _insist(body, manifest.weights_digest, TUNED_ROUTER_WEIGHTS_FILE)
    try:
        tensors = load(body)
    except (SafetensorError, ValueError) as error:
        raise BundleNotSafetensors("The tuned rows cannot be read as safetensors; tune again.") from error
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != manifest.tensor_shapes() or any(t.dtype != torch.float32 for t in tensors.values()):
        raise BundleWrongShape("The tuned rows are not those that the manifest describes.", tensors=[])
    if rotten := not_finite(tensors):
        raise TensorsNotFinite("Tuned rows hold NaN or infinity; tune again.", tensors=rotten[:16])
    rows = {member: tensors[f"rows.{place}"] for place, member in enumerate(manifest.members)}
    return TunedRouter(manifest=manifest, rows=rows)


def apply_tuned(experts: Mapping[str, Expert], tuned: TunedRouter) -> dict[str, Expert]:
    """The members with tuned rows in the place of their own.

    Networks, biases and gates are shared with the given experts, not copied; the given ones do not change.

    Args:
        experts: exactly the members, by bundle digest.
        tuned: made for them.

    Returns:
        New experts in canonical order.

    Raises:
        RouterNeedsRedo: the members differ from those that it was tuned for.
    """
    if not tuned.manifest.holds_for(tuned.manifest.base_digest, experts):
        raise RouterNeedsRedo(
            "The router was tuned for other members. Use their own rows, or tune again for these.",
            left=sorted(set(tuned.members) - set(experts)),
            joined=sorted(set(experts) - set(tuned.members)),
        )
    return {member: with_rows(experts[member], tuned.rows[member]) for member in sorted(experts)}


def choose_router(
    experts: Mapping[str, Expert], tuned: TunedRouter | None, *, base_digest: str
) -> RouterChoice:
    """Tuned rows where they hold, else the members' own: a removal never leaves traces of the one removed.

    Args:
        experts: the composition's members by bundle digest.
        tuned: the tuned router that is wanted, if any.
        base_digest: of the base that they stand beside.
    """
    if tuned is not None and tuned.manifest.holds_for(base_digest, experts):
        return RouterChoice(
            experts=apply_tuned(experts, tuned),
            variant="tuned",
            needs_redo=False,
            tuned_digest=tuned.digest,
        )
    plain = {member: experts[member] for member in sorted(experts)}
    return RouterChoice(experts=plain, variant="gated", needs_redo=tuned is not None, tuned_digest=None)


@torch.no_grad()
def with_rows(expert: Expert, rows_LD: Tensor) -> Expert:
    """The same expert with other router rows; everything else is shared, not copied."""
    named = itertools.chain(expert.named_parameters(), expert.named_buffers())
    shared = {id(tensor): tensor for name, tensor in named if not name.endswith("router.row")}
    twin = copy.deepcopy(expert, shared)
    for layer in range(rows_LD.shape[0]):
        row = twin.layer(layer).router.row
        row.copy_(rows_LD[layer].to(row))
    return twin


def _insist(data: bytes, digest: str, name: str) -> None:
    if digest_bytes(data) != digest:
        raise DigestMismatch(f"{name} is not the file that its digest names; fetch it again.", file=name)

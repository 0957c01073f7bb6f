# SPDX-License-Identifier: Apache-2.0
"""Bundles that came in through the door: found again where they lie, countersigned and stored.

What is in them the gateway has checked already; it is checked again here, since a file may change between.
Knows nothing of who may bring what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.operations.staging import staged_path, unpacked_folder
from cluster.operations.table import Request
from model_core.packing.bundle import CheckedBundle, check_bundle, countersign_bundle, reseal_bundle
from model_core.packing.keys import load_or_create_key

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class ReceivedBundle(Request):
    """The staged archive and what the gateway found in it."""

    id: str = Field(max_length=60)
    bundle_digest: str = Field(max_length=71)


def received_bundle(desk: Desk, upload: ReceivedBundle) -> CheckedBundle:
    """The bundle of an upload, checked to be the one that the gateway found in it.

    Raises:
        DigestMismatch: it has changed since.
        PackingError: as ``check_bundle``.
    """
    folder = unpacked_folder(staged_path(desk.home.uploads, upload.id))
    return check_bundle(folder, expect_digest=upload.bundle_digest)


def store_bundle(desk: Desk, checked: CheckedBundle, seal_for: str | None) -> None:
    """Countersigns and stores a bundle, sealed anew for a tenant if one is named.

    Whoever calls has shown by an API key to speak for that tenant, which is what a job's seal rests on too.
    """
    # The same bundle imported again keeps its first seal: a stored bundle never changes.
    if not desk.artifacts.has(checked.digest):
        if seal_for is not None:
            reseal_bundle(checked.folder, load_or_create_key(desk.home.owner_key(seal_for)))
        countersign_bundle(checked.folder, load_or_create_key(desk.home.admission_key))
        desk.artifacts.put_bundle(checked.folder, checked.digest)

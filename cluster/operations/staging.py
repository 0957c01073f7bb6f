# SPDX-License-Identifier: Apache-2.0
"""Where a file lies between the door that received it and the operation that keeps it."""

from __future__ import annotations

from pathlib import Path

from cluster.home import Home
from model_core.packing.canonical import check_digest
from model_core.packing.ids import check_id


def staged_path(folder: Path, upload: str) -> Path:
    """The staged file of an upload id; the id's form leaves no way out of the folder.

    Raises:
        InvalidName: the text is not an upload id.
    """
    return folder / check_id(upload, "upl")


def unpacked_folder(staged: Path) -> Path:
    """Where a staged archive is unpacked; it goes when the staged file goes."""
    return staged.with_name(staged.name + ".d")


def documents_path(home: Home, tenant: str, stored_digest: str) -> Path:
    """Where a tenant's stored documents lie, named by their digest."""
    return home.datasets(tenant) / (check_digest(stored_digest).removeprefix("sha256:") + ".jsonl")

# SPDX-License-Identifier: Apache-2.0
"""Where a file lies between the door that received it and the operation that keeps it."""

from __future__ import annotations

from pathlib import Path

from model_core.packing.ids import check_id


def staged_path(folder: Path, upload: str) -> Path:
    """The staged file of an upload id; the id's form leaves no way out of the folder.

    Raises:
        InvalidName: the text is not an upload id.
    """
    return folder / check_id(upload, "upl")

# SPDX-License-Identifier: Apache-2.0
"""Files of a model folder that somebody else filled: names that stay inside, links that lead nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

from model_core.errors import BundleRefused, ModelFolderRefused
from model_core.packing.files import read_file

# One file of the folder: no separators, no leading dot.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,254}")


def plain_path(folder: Path, name: str) -> Path:
    """The path of a file of the folder, links resolved.

    A link may lead to a file of the same folder, or, in the cache layout of the Hugging Face hub
    (``snapshots/REVISION/file``), to the ``blobs`` beside it, and nowhere else.

    Raises:
        ModelFolderRefused: the name or its link leaves the folder, or there is no such file.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise ModelFolderRefused(
            f"{name[:80]!r} is not the name of a file inside the folder.", file=name[:80]
        )
    home = folder.resolve()
    real = (home / name).resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if real.parent not in (home, blobs):
        raise ModelFolderRefused(f"{name} is a link that leaves the folder.", file=name)
    if not real.is_file():
        raise ModelFolderRefused(f"The folder lacks {name}; fetch it again.", file=name)
    return real


def read_side_file(folder: Path, name: str, limit_bytes: int) -> bytes | None:
    """Reads a small file of the folder; None where there is none.

    Raises:
        ModelFolderRefused: a link that leaves the folder, or a file that is too large.
    """
    if not exists(folder / name):
        return None
    try:
        return read_file(plain_path(folder, name), limit_bytes)
    except BundleRefused as error:
        raise ModelFolderRefused(error.sentence, file=name) from error


def exists(path: Path) -> bool:
    """Whether anything has this name, a dangling link included."""
    return path.is_symlink() or path.exists()

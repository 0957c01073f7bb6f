# SPDX-License-Identifier: Apache-2.0
"""Plain files, handled with suspicion: links are never followed, writes reach the disk.

Knows nothing of what the files are for.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from model_core.errors import BundleMissingFile, BundleTooLarge, BundleUnsafePath
from model_core.pacing import read_pieces

_NOT_PLAIN = {errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EISDIR}


def read_file(path: Path, limit_bytes: int) -> bytes:
    """Reads a plain file whole.

    Raises:
        BundleUnsafePath: a link, a device or a folder.
        BundleMissingFile: there is none.
        BundleTooLarge: more than ``limit_bytes``.
    """
    with open_plain_file(path, limit_bytes) as (stream, size_bytes):
        return stream.read(size_bytes)


@contextlib.contextmanager
def open_plain_file(path: Path, limit_bytes: int) -> Iterator[tuple[BinaryIO, int]]:
    """Opens a plain file for reading without following a link; yields (stream, size in bytes).

    Raises:
        BundleUnsafePath: a link, a device or a folder.
        BundleMissingFile: there is none.
        BundleTooLarge: more than ``limit_bytes``.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise BundleMissingFile(f"The bundle lacks {path.name}.", file=path.name) from error
    except OSError as error:
        if error.errno not in _NOT_PLAIN:  # the machine's fault, not the file's
            raise
        raise BundleUnsafePath(
            f"{path.name} cannot be opened as a plain file (links are not followed).", file=path.name
        ) from error
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BundleUnsafePath(f"{path.name} is not a plain file.", file=path.name)
        if status.st_size > limit_bytes:
            raise BundleTooLarge(
                f"{path.name} is larger than the limit of {limit_bytes} bytes.",
                file=path.name,
                limit_bytes=limit_bytes,
            )
        yield stream, status.st_size


def write_new_file(path: Path, data: bytes) -> None:
    """Writes a file that did not exist, through to the disk."""
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def copy_plain_file(source: Path, target: Path, limit_bytes: int = 64 << 30) -> None:
    """Copies a plain file's bytes (never its mode, owner or links) into a new file, through to the disk.

    Raises:
        BundleRefused: as ``open_plain_file``.
    """
    with open_plain_file(source, limit_bytes) as (stream, _), target.open("xb") as out:
        for piece in read_pieces(stream):
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable; a file's own fsync does not."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest_stream(stream: BinaryIO) -> str:
    """The digest of an open file's bytes, from its start."""
    state = hashlib.sha256()
    stream.seek(0)
    for piece in read_pieces(stream):
        state.update(piece)
    return "sha256:" + state.hexdigest()

# SPDX-License-Identifier: Apache-2.0
"""Looks at received files before anybody keeps them: documents line by line, bundles file by file.

These functions read whole files and run outside the unit of work. They trust nothing of a sender: archive
members have plain names out of a small alphabet, no links, no holes, no more bytes than arrived.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cluster.errors import UnsupportedBody
from cluster.operations.staging import unpacked_folder
from model_core.errors import BundleCorrupt, BundleExtraFile, BundleUnsafePath, InvalidName
from model_core.packing.bundle import CheckedBundle, check_bundle
from model_core.packing.canonical import canonical_bytes, digest_bytes, digest_file, merkle_root
from model_core.packing.ids import check_file_name

TAR = "application/x-tar"
JSON_LINES = "application/x-ndjson"

_MAX_MEMBERS = 64
_COPY_BYTES = 1 << 20


def inspect_documents(path: Path) -> dict[str, Any]:
    """Validates JSON lines ``{"id", "text"}`` and counts what the data card needs.

    Returns:
        ``documents``, ``text_bytes``, ``merkle_root`` (over each document's id and the digest of its text, in
        the order of ids), ``stored_digest`` and ``size_bytes`` of the file.

    Raises:
        DatasetRefused: a line is not a document; the sentence names the line, never its text.
    """
    from model_core.text.documents import read_documents

    documents = read_documents(path)
    leaves = [
        canonical_bytes({"id": one.id, "text": digest_bytes(one.text.encode())})
        for one in sorted(documents, key=lambda one: one.id)
    ]
    return {
        "documents": len(documents),
        "text_bytes": sum(one.size_bytes for one in documents),
        "merkle_root": merkle_root(leaves),
        "stored_digest": digest_file(path),
        "size_bytes": path.stat().st_size,
    }


def inspect_bundle(path: Path) -> dict[str, Any]:
    """Unpacks a received archive beside itself and checks the bundle in it.

    Returns:
        ``bundle_digest``, by which the operation knows what was checked.

    Raises:
        UnsupportedBody: not a plain tar archive.
        BundleRefused: an entry or a file is not what the manifest names.
        PackingError: manifest or seal do not hold.
    """
    return {"bundle_digest": unpack_bundle(path, unpacked_folder(path)).digest}


def unpack_bundle(archive: Path, folder: Path) -> CheckedBundle:
    """Unpacks a tar archive of a bundle's files into a new folder and checks it.

    The folder is removed again when anything is wrong.

    Raises:
        UnsupportedBody: not an uncompressed tar archive.
        BundleRefused: see ``check_bundle``; also links, folders, repeated or odd names.
    """
    folder.mkdir(mode=0o700)
    try:
        _unpack(archive, folder)
        return check_bundle(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def pack_bundle(folder: Path, archive: Path) -> None:
    """Writes a bundle's files into a tar archive, as ``unpack_bundle`` takes it."""
    with archive.open("wb") as packed:
        for part in tar_bytes(folder):
            packed.write(part)


def tar_bytes(folder: Path) -> Iterator[bytes]:
    """The tar archive of a folder of plain files, piece by piece; equal files give equal bytes.

    GNU headers, because weights may exceed the 8 GiB that older ones can count.
    """
    for file in sorted(folder.iterdir()):
        member = tarfile.TarInfo(file.name)
        member.size, member.mode = file.stat().st_size, 0o600
        yield member.tobuf(format=tarfile.GNU_FORMAT)
        with file.open("rb") as content:
            while piece := content.read(_COPY_BYTES):
                yield piece
        yield bytes(-member.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def tar_size_bytes(folder: Path) -> int:
    """Length of what ``tar_bytes`` yields."""
    blocks = sum(1 + -(-file.stat().st_size // tarfile.BLOCKSIZE) for file in folder.iterdir())
    return (blocks + 2) * tarfile.BLOCKSIZE


def _unpack(archive: Path, folder: Path) -> None:
    left_bytes = archive.stat().st_size
    try:
        with tarfile.open(archive, "r:") as packed:
            for number, member in enumerate(packed):
                if number >= _MAX_MEMBERS:
                    raise BundleExtraFile(f"The archive holds more than {_MAX_MEMBERS} entries.")
                if member.isdir() and member.name in {".", "./"}:
                    continue  # tar writes the packed folder itself as its first entry
                _check_member(member)
                left_bytes -= member.size
                if left_bytes < 0:
                    raise BundleCorrupt("The archive is shorter than it says. Pack and send it again.")
                content = packed.extractfile(member)
                if content is None:
                    raise BundleUnsafePath("The archive holds an entry that is not a file.")
                _write_new(content, folder / member.name, member.size)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise UnsupportedBody(
            "The file is not a plain tar archive of a bundle. Pack its files: tar cf bundle.tar -C FOLDER .",
            media_type=TAR,
        ) from error


def _check_member(member: tarfile.TarInfo) -> None:
    member.name = member.name.removeprefix("./")
    try:
        check_file_name(member.name, "file of a bundle")
    except InvalidName as error:
        raise BundleUnsafePath(f"The archive holds an entry with an unsafe name. {error.sentence}") from error
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise BundleUnsafePath(f"{member.name} is not a plain file in the archive.", file=member.name)


def _write_new(content: Any, path: Path, size_bytes: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise BundleExtraFile(f"The archive holds {path.name} twice.", file=path.name) from error
    with os.fdopen(handle, "wb") as file:
        _copy(content, file, size_bytes)


def _copy(content: Any, file: BinaryIO, size_bytes: int) -> None:
    while size_bytes > 0:
        piece = content.read(min(size_bytes, _COPY_BYTES))
        if not piece:
            raise EOFError
        file.write(piece)
        size_bytes -= len(piece)

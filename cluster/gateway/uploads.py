# SPDX-License-Identifier: Apache-2.0
"""Streams a file from a request into the staging folder, bounded in bytes.

The staged file has a random name that the door makes, so that no name of the sender ever becomes a path.
It is removed when the request ends, whatever happened; the operation that runs in between moves or copies
what it keeps. The folder must be one that the office reads too (the installation's home).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from cluster.errors import UnsupportedBody
from cluster.gateway.bodies import check_announced_length, too_large
from cluster.gateway.errors import MalformedBody
from cluster.operations.staging import staged_path, unpacked_folder
from model_core.packing.ids import new_id

_WRITE_BYTES = 1 << 20


def check_file_headers(request: Request, media_type: str, max_bytes: int) -> None:
    """Refuses by its headers a body that cannot be the file.

    Raises:
        UnsupportedBody: the body is announced as something else.
        TooLarge: it is announced as longer than the bound.
    """
    announced = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if announced not in {media_type, "application/octet-stream"}:
        raise UnsupportedBody(f"This address takes a file. Set the header Content-Type: {media_type}.")
    check_announced_length(request, max_bytes)


@contextlib.asynccontextmanager
async def staged_file(
    folder: Path, parts: AsyncIterator[bytes], max_bytes: int
) -> AsyncIterator[tuple[str, Path]]:
    """Holds bytes as a staged file and gives its upload id and its path.

    Args:
        folder: the staging folder.
        parts: the file's bytes.
        max_bytes: the file's bound.

    Raises:
        TooLarge: it is longer than the bound; nothing stays on disk.
        MalformedBody: it is empty, or the sender hung up.
    """
    async with _staging_file(folder) as (upload, path, write):
        size_bytes = 0
        async for part in parts:
            size_bytes += len(part)
            if size_bytes > max_bytes:
                raise too_large(max_bytes)
            await write(part)
        if not size_bytes:
            raise MalformedBody("The body is empty. Send the file as the body of the request.")
        await write(b"", last=True)
        yield upload, path


class _Writer:
    """Gathers small parts and writes them off the event loop."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._held = bytearray()

    async def __call__(self, part: bytes, *, last: bool = False) -> None:
        self._held += part
        if last or len(self._held) >= _WRITE_BYTES:
            ready, self._held = bytes(self._held), bytearray()
            await run_in_threadpool(_write_all, self._descriptor, ready)


@contextlib.asynccontextmanager
async def _staging_file(folder: Path) -> AsyncIterator[tuple[str, Path, _Writer]]:
    upload = new_id("upl")
    path = staged_path(folder, upload)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield upload, path, _Writer(descriptor)
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        shutil.rmtree(unpacked_folder(path), ignore_errors=True)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]

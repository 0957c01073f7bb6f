# SPDX-License-Identifier: Apache-2.0
"""Which derived files the processes of a machine still need: one says so, and the last one clears away.

Every process keeps one file in the folder, locked for as long as it lives, that names the bundles it may
want to open. Files of bundles that no living process names are removed. Removing one is always safe: who
maps it keeps its mapping, and who wants it again makes it again. The order makes it also cheap: a process
says what it needs before it makes a file, and clearing away reads what everybody needs under one lock, so
no file goes that somebody has just said he needs. It knows neither permissions nor epochs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from model_core.engine.native.derived import DerivedFolder
from model_core.engine.native.locking import locked, not_ours

_PATIENCE_S = 5.0
_ABANDONED_S = 3600.0  # nobody writes one file for that long


class Claims:
    """One process's word on the derived files that it needs.

    Args:
        folder: of derived files; made if it is missing.
        name: of the process, unique on the machine.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._path = folder / f"{name}.claims"
        self._handle: int | None = None

    def say(self, digests: Iterable[str]) -> None:
        """Says what this process needs from now on, and clears away what nobody needs.

        Args:
            digests: of bundles, the base's among them. Whoever leaves one out has closed its last use of it,
                or keeps its mapping.

        Raises:
            OSError: the folder cannot be used; derived files are not kept there either then.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not_ours(self._folder):
            return  # nothing is kept in such a folder, so there is nothing to clear away
        with locked(self._folder / "claims.lock", patience_s=_PATIENCE_S):
            self._write(sorted(set(digests)))
            with contextlib.suppress(ValueError):  # half a claim: whoever writes it clears away after
                DerivedFolder(self._folder).keep_only(self._everybodys())
            self._clear_abandoned()

    def close(self) -> None:
        """Needs nothing any more; files stay for whoever comes next."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._path.unlink(missing_ok=True)
            os.close(handle)

    def _write(self, digests: list[str]) -> None:
        if self._handle is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._handle = os.open(self._path, flags, 0o600)
            fcntl.flock(self._handle, fcntl.LOCK_EX)
        said = json.dumps(digests).encode()
        os.pwrite(self._handle, said, 0)
        os.ftruncate(self._handle, len(said))

    def _everybodys(self) -> Iterator[str]:
        for path in self._folder.glob("*.claims"):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
                if path != self._path and _is_free(stream.fileno()):
                    path.unlink(missing_ok=True)  # its process has ended
                else:
                    yield from json.loads(stream.read() or b"[]")

    def _clear_abandoned(self) -> None:
        """Halves of files, of processes that were killed while they wrote."""
        before_s = time.time() - _ABANDONED_S
        for path in self._folder.glob("*.partial"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before_s:
                    path.unlink()


def _is_free(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

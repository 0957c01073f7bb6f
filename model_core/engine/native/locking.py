# SPDX-License-Identifier: Apache-2.0
"""One process at a time makes a file; the others wait for it. Knows nothing of what is made."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

_LOOK_AGAIN_S = 0.02


@contextlib.contextmanager
def locked(path: Path, *, patience_s: float) -> Iterator[None]:
    """Waits for whoever holds the lock of that name, then holds it.

    A holder that hangs is not waited for for ever: after some time both work, which costs time and harms
    nothing where files are renamed into place.

    Args:
        path: the lock's file; made if it is missing, and kept.
        patience_s: how long to wait at most.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline_s = time.monotonic() + patience_s
        while not _taken(handle) and time.monotonic() < deadline_s:
            time.sleep(_LOOK_AGAIN_S)
        yield
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def not_ours(path: Path) -> str | None:
    """Why what lies there cannot be trusted to be of our own making, or None.

    Args:
        path: a file or folder that exists.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "is a link"
    if status.st_uid not in (os.geteuid(), 0):
        return "belongs to another user"
    if status.st_mode & stat.S_IWOTH:
        return "can be written by every user"
    return None

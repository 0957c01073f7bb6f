# SPDX-License-Identifier: Apache-2.0
"""The highest epoch that the hosts of a machine have followed, kept over restarts.

A host that starts anew remembers nothing; without this file it would follow a register that was restored to
an older state. It knows no register and no host.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from cluster.hosting.errors import EpochRefused


class EpochFloor:
    """A number on disk that only grows; several processes may share it.

    Args:
        path: its file; made with the first epoch.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int:
        """The number; -1 before the first.

        Raises:
            EpochRefused: what stands there is no number, so nobody knows which epochs are old.
        """
        try:
            return _number(self._path.read_text(encoding="ascii"))
        except FileNotFoundError:
            return -1

    def raise_to(self, epoch: int) -> None:
        """Makes the number at least this, and returns once it is on disk."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if epoch <= _number(file.read()):
                return
            # Numbers only get longer, so what is written covers what was there: no moment without a number.
            file.seek(0)
            file.write(str(epoch))
            file.flush()
            os.fdatasync(file.fileno())


def _number(text: str) -> int:
    try:
        return int(text or "-1")
    except ValueError:
        raise EpochRefused(
            "The file that remembers the highest epoch is damaged, so no register is followed; write the "
            "register's present epoch into it, or remove it if the register was never restored.",
            file="epoch.floor",
        ) from None

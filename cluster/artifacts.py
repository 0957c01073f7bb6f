# SPDX-License-Identifier: Apache-2.0
"""Artifact stores that can also forget a bundle, which only an approved erasure asks for."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from model_core.packing.store import ArtifactStore, DirectoryStore, disk_errors


@runtime_checkable
class RemovingStore(ArtifactStore, Protocol):
    """An ``ArtifactStore`` from which bundles can be erased."""

    def remove_bundle(self, digest: str) -> bool:
        """Removes a bundle with every file of it; False where there was none.

        It MUST vanish as a whole before any of its files does. Taken up again after an interruption it MUST
        remove what is left. Readers that have its files open keep them until they close.

        Raises:
            InvalidDigest: not a digest.
            StoreUnavailable: the disk or server failed; call it again.
        """
        ...


class RemovingDirectoryStore(DirectoryStore):
    """A ``DirectoryStore`` from which bundles can be erased."""

    def remove_bundle(self, digest: str) -> bool:
        """See ``RemovingStore.remove_bundle``."""
        home = self._home(digest)
        with disk_errors():
            if not home.is_dir():
                return False
            self._set_aside(home)
        with self._lock:
            self._verified.pop(digest, None)
        return True

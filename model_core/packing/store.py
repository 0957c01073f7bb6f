# SPDX-License-Identifier: Apache-2.0
"""Where bundles are kept: one protocol, and a directory that obeys it.

Content-addressed, written once, verified on the way in and on the way out. Knows nothing of who may read
what, nor whether a signature is trusted: before serving, callers check the bundle against trusted keys.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from model_core.errors import (
    ArtifactConflict,
    ArtifactNotFound,
    PackingError,
    StoreUnavailable,
)
from model_core.packing.bundle import CheckedBundle, check_bundle
from model_core.packing.canonical import check_digest, is_digest
from model_core.packing.files import copy_plain_file, sync_folder
from model_core.packing.ids import new_id
from model_core.packing.manifest import MANIFEST_FILE, SEAL_FILE

# What a file was when it was verified: device, inode, size, mtime, ctime (in ns).
_Identity = tuple[tuple[str, int, int, int, int, int], ...]


class ArtifactStore(Protocol):
    """Keeps bundles by digest. One abstract suite, ``tests/contract``, holds every implementation to this.

    Constraints:
        - An implementation MUST refuse what ``check_bundle`` refuses, and MUST verify its own copy, not the
          folder offered, since that folder may change in between.
        - A bundle MUST become visible whole or not at all, also when the writer is killed at any moment.
        - A stored bundle MUST NOT change. Putting it again with the same seal MUST do nothing; with
          another seal it MUST be refused.
        - Nothing MUST be handed out whose bytes were not compared with the digest by this process.
        - Readers and writers in several threads and processes MUST be safe at the same time.
    """

    def put_bundle(self, folder: Path, expect_digest: str) -> str:
        """Stores a copy of a sealed bundle and returns its digest.

        A stored copy that has gone bad MUST be replaced by a good one that is put again.

        Raises:
            BundleRefused, ManifestInvalid, SealMissing, SignatureInvalid: the folder is no sealed bundle.
            DigestMismatch: it is another bundle than ``expect_digest``.
            ArtifactConflict: the same bundle is stored with another seal.
            StoreUnavailable: the disk or server failed; nothing became visible.
        """
        ...

    def get_bundle(self, digest: str) -> Path:
        """A local folder with the verified bundle; callers MUST NOT write to it.

        Raises:
            ArtifactNotFound: no such bundle.
            PackingError: the stored bytes are no longer the bundle (codes of ``check_bundle``).
            StoreUnavailable: the disk or server failed.
        """
        ...

    def has(self, digest: str) -> bool:
        """Whether the bundle is stored whole; its bytes are not read.

        Raises:
            InvalidDigest: not a digest.
            StoreUnavailable: the disk or server failed.
        """
        ...

    def digests(self) -> tuple[str, ...]:
        """The digests of all stored bundles, sorted.

        Raises:
            StoreUnavailable: the disk or server failed.
        """
        ...


class DirectoryStore:
    """An ``ArtifactStore`` in a directory of one machine (or of a file system with atomic renames).

    Layout: ``bundles/sha256-<hex>/`` and ``staging/``. A bundle is copied into staging, verified there,
    synced, and renamed into place. Each staging folder has a lock file that its writer holds; the kernel
    releases it when the writer dies, so leftovers of killed writers are told from live ones and swept at
    the next start or put, without clocks or process ids.

    ``get_bundle`` reads every byte the first time this process asks for a bundle and again whenever device,
    inode, size, mtime or ctime of any file differ from that time. Reading weights of gigabytes at each
    request would cost more than it protects: ctime cannot be set back without being root, and whoever is
    root here can change the memory as well. Files are made read-only; folders are not, so that the owner
    can delete a store by ordinary means. Real protection is a store owned by another uid.

    Args:
        root: the directory; made if absent.

    Raises:
        StoreUnavailable: the directory cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self._bundles = root / "bundles"
        self._staging = root / "staging"
        self._verified: dict[str, _Identity] = {}
        self._lock = threading.Lock()
        with disk_errors():
            self._bundles.mkdir(parents=True, exist_ok=True)
            self._staging.mkdir(parents=True, exist_ok=True)
            self._sweep()

    def put_bundle(self, folder: Path, expect_digest: str) -> str:
        """See ``ArtifactStore.put_bundle``."""
        check_digest(expect_digest)
        with disk_errors():
            checked = check_bundle(folder, expect_digest=expect_digest)
            if self.has(expect_digest) and self._is_kept(checked):
                return expect_digest
        with self.stage() as draft:
            with disk_errors():
                for name in (*checked.manifest.files, SEAL_FILE, MANIFEST_FILE):
                    copy_plain_file(folder / name, draft / name)
            return self.adopt(draft, expect_digest)

    def get_bundle(self, digest: str) -> Path:
        """See ``ArtifactStore.get_bundle``."""
        home = self._home(digest)
        with disk_errors():
            if not home.is_dir():
                raise ArtifactNotFound("The store holds no bundle of that digest.", digest=digest)
            # Taken before the check: a change during it is then seen at the next get.
            identity = _identity(home)
            with self._lock:
                if self._verified.get(digest) == identity:
                    return home
            check_bundle(home, expect_digest=digest)
        with self._lock:
            self._verified[digest] = identity
        return home

    def has(self, digest: str) -> bool:
        """See ``ArtifactStore.has``."""
        with disk_errors():
            return self._home(digest).is_dir()

    def digests(self) -> tuple[str, ...]:
        """See ``ArtifactStore.digests``."""
        with disk_errors():
            names = [entry.name.replace("-", ":", 1) for entry in self._bundles.iterdir()]
        return tuple(sorted(filter(is_digest, names)))

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """Yields an empty folder beside the bundles; it is gone afterwards, also if the process is killed.

        Raises:
            StoreUnavailable: it cannot be made.
        """
        with disk_errors():
            self._sweep()
            draft, lock = self._claim_draft()
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            with contextlib.suppress(OSError):
                _lock_of(draft).unlink()
            os.close(lock)

    def adopt(self, draft: Path, expect_digest: str) -> str:
        """Verifies a folder made by ``stage`` and moves it in among the bundles.

        Raises:
            PackingError: as ``put_bundle``.
        """
        checked = check_bundle(draft, expect_digest=expect_digest)
        home = self._home(expect_digest)
        with disk_errors():
            for entry in draft.iterdir():
                entry.chmod(0o444)
            sync_folder(draft)
            while not _rename_into_place(draft, home):
                if self._is_kept(checked):
                    return expect_digest
                self._set_aside(home)
            sync_folder(self._bundles)
        return expect_digest

    def _is_kept(self, checked: CheckedBundle) -> bool:
        """Whether a good copy with the same seal is in place; False means that it is gone bad or gone."""
        try:
            kept = check_bundle(self._home(checked.digest), expect_digest=checked.digest)
        except PackingError:
            return False
        if kept.seal != checked.seal:
            raise ArtifactConflict(
                "This bundle is stored with another seal; a stored bundle never changes.",
                digest=checked.digest,
            )
        return True

    def _set_aside(self, home: Path) -> None:
        """Moves a copy that has gone bad into staging, where it is swept."""
        with contextlib.suppress(FileNotFoundError), self.stage() as heap:
            home.rename(heap / home.name)

    def _home(self, digest: str) -> Path:
        return self._bundles / check_digest(digest).replace(":", "-")

    def _claim_draft(self) -> tuple[Path, int]:
        """Makes a staging folder with a held lock."""
        while True:
            draft = self._staging / new_id("draft")
            lock = os.open(_lock_of(draft), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                # A sweeper may have come between the two calls: then the name is gone, and we start over.
                fcntl.flock(lock, fcntl.LOCK_EX)
                if os.fstat(lock).st_nlink == 1:
                    draft.mkdir()
                    return draft, lock
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)

    def _sweep(self) -> None:
        """Removes what killed writers left in staging."""
        for lock_path in self._staging.glob("*.lock"):
            try:
                lock = os.open(lock_path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
                # The folder goes first: killed in between, the lock file is left and swept next time.
                lock_path.unlink(missing_ok=True)
            except BlockingIOError:
                continue  # its writer lives
            finally:
                os.close(lock)


def _lock_of(draft: Path) -> Path:
    return draft.with_name(draft.name + ".lock")


def _rename_into_place(draft: Path, home: Path) -> bool:
    """Whether the draft now is the home; False where one exists (a rename never replaces a full folder)."""
    try:
        draft.rename(home)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise
    return True


def _identity(home: Path) -> _Identity:
    """What the files of a bundle are, without reading them."""
    stats = [(entry.name, entry.stat(follow_symlinks=False)) for entry in os.scandir(home)]
    return tuple(
        sorted((name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)
    )


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turns errors of the disk into ``StoreUnavailable``."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(
            f"The artifact store's disk failed ({error.strerror or 'I/O error'}); see to it and try again.",
            errno=error.errno,
        ) from error

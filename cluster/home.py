# SPDX-License-Identifier: Apache-2.0
"""The installation's folder: where things lie, who may read them, and which secrets exist.

Folders are 0700 and secrets 0600, created with that mode rather than tightened afterwards. A home that
belongs to somebody else or that others may write is refused, since whoever can swap a key file owns the
marketplace. The module knows folders, modes and random bytes; it does not know what a database is.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.errors import HomeRefused
from model_core.packing.ids import check_name

_DIRECTORY_MODE = 0o700
_SECRET_MODE = 0o600


class Home:
    """Paths and secrets of one installation.

    Args:
        root: the home folder; created by :meth:`prepare`, not by the constructor.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    # -- folders -------------------------------------------------------------------------------------

    @property
    def keys(self) -> Path:
        """Folder of key files."""
        return self.root / "keys"

    @property
    def logs(self) -> Path:
        """Folder of structured logs."""
        return self.root / "logs"

    @property
    def run_file(self) -> Path:
        """Which processes and ports belong to the running marketplace; absent when none runs."""
        return self.root / "run.json"

    @property
    def operator_key(self) -> Path:
        """The first operator's API key, written once at the first start."""
        return self.root / "operator.key"

    @property
    def ray_token(self) -> Path:
        """Ray's cluster token, random per installation."""
        return self.keys / "ray.token"

    @property
    def admission_key(self) -> Path:
        """Ed25519 key that countersigns admitted bundles."""
        return self.keys / "admission.key"

    @property
    def checkpoint_key(self) -> Path:
        """Ed25519 key that signs audit checkpoints; never in the database nor its backups."""
        return self.keys / "checkpoint.key"

    @property
    def checkpoints(self) -> Path:
        """Folder of signed checkpoints of the audit, unless the settings name another disk."""
        return self.root / "checkpoints"

    @property
    def audit_exports(self) -> Path:
        """Folder of audit bundles that were asked for; the newest few are kept."""
        return self.root / "audit-exports"

    @property
    def upgrade_mark(self) -> Path:
        """File that is there from before a schema's upgrade until what it changed is sealed."""
        return self.root / "upgrade.unsealed"

    @property
    def receipt_key(self) -> Path:
        """Ed25519 key that signs receipts for owners."""
        return self.keys / "receipt.key"

    @property
    def journals(self) -> Path:
        """Folder in which model hosts journal usage before they release a chunk."""
        return self.root / "journals"

    @property
    def kernels(self) -> Path:
        """Folder of kernels that were compiled on this machine."""
        return self.root / "kernels"

    @property
    def weights(self) -> Path:
        """Folder of weights in the order in which kernels read them, mapped by all model hosts."""
        return self.root / "weights"

    @property
    def uploads(self) -> Path:
        """Folder for bodies that are being received."""
        return self.root / "uploads"

    def owner_key(self, tenant: str) -> Path:
        """The tenant's Ed25519 key kept for it in the embedded mode; it signs its bundles."""
        return self.keys / "owners" / f"{check_name(tenant, what='tenant')}.key"

    def datasets(self, tenant: str) -> Path:
        """Folder of one tenant's stored documents."""
        return self.root / "datasets" / check_name(tenant, what="tenant")

    def jobs(self, tenant: str) -> Path:
        """Folder of one tenant's job work folders."""
        return self.root / "jobs" / check_name(tenant, what="tenant")

    # -- preparing -----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Creates missing folders and refuses a home that is not safe.

        Raises:
            HomeRefused: the folder belongs to another user, or others may enter or write it.
        """
        self.make_folder(self.root)
        for folder in (self.keys, self.keys / "owners", self.logs, self.journals, self.uploads,
                       self.kernels, self.weights, self.root / "datasets", self.root / "jobs"):  # fmt: skip
            self.make_folder(folder)

    def make_folder(self, folder: Path) -> Path:
        """Creates a folder with mode 0700, or checks that an existing one is ours alone."""
        try:
            folder.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise HomeRefused(
                f"The folder {folder.name!r} of the installation cannot be created ({error.strerror}). Point "
                "MARKETPLACE_HOME at a folder that you may write.",
                reason="unwritable",
            ) from error
        found = folder.lstat()
        if stat.S_ISLNK(found.st_mode):
            raise HomeRefused(
                f"The folder {folder.name!r} of the installation is a symbolic link. Name the real folder.",
                reason="symlink",
            )
        if found.st_uid != os.geteuid():
            raise HomeRefused(
                f"The folder {folder.name!r} of the installation belongs to another user. Run as its owner, "
                "or point MARKETPLACE_HOME at a folder of your own.",
                reason="foreign_owner",
            )
        if stat.S_IMODE(found.st_mode) & 0o022:
            raise HomeRefused(
                f"Others may write into the folder {folder.name!r} of the installation, and whoever can swap "
                "its keys owns the marketplace. Take the right away with: chmod go-rwx",
                reason="writable_by_others",
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            folder.chmod(_DIRECTORY_MODE)
        return folder

    # -- secrets -------------------------------------------------------------------------------------

    def write_secret(self, path: Path, content: bytes) -> None:
        """Writes a secret atomically with mode 0600 (never readable by others, not even briefly)."""
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _SECRET_MODE)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)

    def read_secret(self, path: Path) -> bytes:
        """Reads a secret, refusing one that others may read or that is not ours.

        Raises:
            HomeRefused: the file is missing, foreign, or readable by others.
        """
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            raise HomeRefused(
                f"The secret {path.name!r} cannot be read ({error.strerror}). Start the marketplace once, or "
                "restore the file from your backup.",
                reason="missing_secret",
                secret=path.name,
            ) from error
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(file.fileno())
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise HomeRefused(
                    f"The secret {path.name!r} is readable by others. Treat it as leaked: remove it to have "
                    "a new one made, or take the right away with: chmod 600",
                    reason="open_secret",
                    secret=path.name,
                )
            return file.read()

    def ray_token_text(self) -> str:
        """Ray's token; made on first use."""
        if not self.ray_token.exists():
            self.write_secret(self.ray_token, secrets.token_hex(32).encode())
        return self.read_secret(self.ray_token).decode().strip()

    # -- run file ------------------------------------------------------------------------------------

    def read_run(self) -> dict[str, Any] | None:
        """What the last ``up`` wrote, or None; a torn or foreign file reads as None."""
        try:
            document = json.loads(self.run_file.read_bytes())
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    def write_run(self, document: Mapping[str, Any]) -> None:
        """Replaces the run file atomically."""
        self.write_secret(self.run_file, json.dumps(document, indent=1, sort_keys=True).encode())

    def forget_run(self) -> None:
        """Removes the run file."""
        self.run_file.unlink(missing_ok=True)

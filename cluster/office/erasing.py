# SPDX-License-Identifier: Apache-2.0
"""Carries out an approved erasure, copy by copy: files, folders, servers, the vault, letters to recipients.

Every step may be done again. A file that is gone already is written down as gone, so an office that dies
between removing and writing finds the rest when it looks again. What cannot be done yet (a server that has
not answered and whose lease still runs, a job that still writes, a disk or store that fails) stays open for
the next look and keeps nothing else from being done and written down.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cluster.artifacts import RemovingStore
from cluster.operations.staging import documents_path
from model_core.errors import StoreUnavailable
from model_core.packing.ids import check_id
from model_core.packing.keys import load_or_create_key
from policy.consents.halts import halts
from policy.erasures.records import Copy, Erasure
from tenants.jobs import FINAL, JobState

if TYPE_CHECKING:
    from cluster.office.desk import Desk

log = logging.getLogger(__name__)

_DAY_US = 86_400_000_000


def carry_out(desk: Desk, erasure_id: str) -> Erasure:
    """Does what can be done now, and signs the record once nothing is left.

    Raises:
        NotFound: there is no such erasure.
        LegalHold: somebody ordered meanwhile that it is kept.
    """
    erasure = desk.erasures.get(erasure_id)
    if erasure.state != "approved":
        return erasure
    desk.erasures.check_not_held(erasure)
    for copy in erasure.copies:
        if not copy.done:
            _try(desk, erasure, copy)
    found = desk.erasures.get(erasure_id)
    if not all(copy.done for copy in found.copies):
        return found
    return desk.erasures.complete(erasure_id, load_or_create_key(desk.home.receipt_key))


def _try(desk: Desk, erasure: Erasure, copy: Copy) -> None:
    try:
        _STEPS[copy.kind](desk, erasure, copy)
    except (StoreUnavailable, OSError) as error:
        log.warning(
            "a copy could not be removed yet",
            extra={"erasure_id": erasure.id, "copy": copy.kind, "kind": type(error).__name__},
        )


def _artifact(desk: Desk, erasure: Erasure, copy: Copy) -> None:
    if not isinstance(desk.artifacts, RemovingStore):
        desk.erasures.note(erasure.id, copy, "kept", why="the artifact store cannot remove bundles")
        return
    removed = desk.artifacts.remove_bundle(copy.place)
    desk.erasures.note(erasure.id, copy, "erased" if removed else "absent")


def _work_folder(desk: Desk, erasure: Erasure, copy: Copy) -> None:
    """Checkpoints, optimizer state and everything else that a job left."""
    if JobState(desk.jobs.get(copy.place).state) not in FINAL:
        return
    folder = desk.home.jobs(erasure.tenant) / check_id(copy.place, "job")
    desk.erasures.note(erasure.id, copy, "erased" if _removed(folder) else "absent")


def _documents(desk: Desk, erasure: Erasure, copy: Copy) -> None:
    digest = str(copy.facts["digest"])
    others = [
        one.id
        for one in desk.datasets.list(erasure.tenant)
        if one.stored_digest == digest and one.id != copy.place
    ]
    if others:
        desk.erasures.note(
            erasure.id, copy, "kept", why="other datasets hold the same documents", datasets=others
        )
        return
    path = documents_path(desk.home, erasure.tenant, digest)
    desk.erasures.note(erasure.id, copy, "erased" if _removed(path) else "absent")


def _vault(desk: Desk, erasure: Erasure, copy: Copy) -> None:
    desk.erasures.note(erasure.id, copy, "erased" if desk.vault.erase(copy.place) else "absent")


def _server(desk: Desk, erasure: Erasure, copy: Copy) -> None:
    """A server forgets by its own word for the epoch, or when its lease is over."""
    publication = desk.register.publication(erasure.epoch or 0)
    lease_us = int(desk.settings.lease_s * 1e6)
    for halt in halts(desk.session, publication, lease_us, desk.now_us):
        if halt.server_id == copy.place and halt.how != "pending":
            facts: dict[str, Any] = {"how": halt.how, "by_us": halt.by_us}
            if desk.settings.artifacts_in_s3:
                facts["local_copy"] = "stays in artifact-cache of its machine until that folder is cleared"
            desk.erasures.note(erasure.id, copy, "erased", **facts)


def _packed_files(desk: Desk, erasure: Erasure, copy: Copy) -> None:
    """Weights in the order of kernels; those of other machines go with the last host that may use them."""
    if any(one.kind == "server" and not one.done for one in desk.erasures.get(erasure.id).copies):
        return
    found = list(desk.home.weights.glob(f"*{copy.place.removeprefix('sha256:')}*"))
    for path in found:
        _removed(path)
    desk.erasures.note(erasure.id, copy, "erased" if found else "absent", files=len(found))


def _recipient(desk: Desk, erasure: Erasure, copy: Copy) -> None:
    desk.erasures.tell(erasure.id, copy)


def _backup(desk: Desk, erasure: Erasure, copy: Copy) -> None:
    gone_us = (erasure.decided_at_us or desk.now_us) + desk.settings.backup_days * _DAY_US
    why = "backups are not edited; the last one that holds it is thrown away then"
    desk.erasures.note(erasure.id, copy, "kept", expires_at_us=gone_us, why=why)


_STEPS: Final[Mapping[str, Callable[[Desk, Erasure, Copy], None]]] = {
    "artifact": _artifact,
    "work_folder": _work_folder,
    "documents": _documents,
    "vault": _vault,
    "server": _server,
    "packed_files": _packed_files,
    "recipient": _recipient,
    "backup": _backup,
}


def _removed(path: Path) -> bool:
    """Removes a file or a folder; False where there was nothing. A link is removed and not followed."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
        return True
    if not path.is_dir():
        return False
    shutil.rmtree(path)
    return True

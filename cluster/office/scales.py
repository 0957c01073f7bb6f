# SPDX-License-Identifier: Apache-2.0
"""The scales: every expert is weighed in a confined child before it is countersigned.

The office never loads a tensor. A child in the enclosure that also holds training runs the expert beside its
base, with bounds on memory, time and files; what it leaves is parsed as untrusted and judged here. An expert
that could not be weighed is not admitted. Takes seconds for a small base and minutes for a large one, so it
runs outside any unit of work.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cluster.errors import WeighingFailed
from cluster.home import Home
from cluster.jobs.site import link_packages
from cluster.operations.table import LONGEST_WEIGHING_S
from cluster.problems import error_of
from model_core.errors import AdmissionRefused, BundleRefused, NetworkError, ProductError
from model_core.packing.admission import (
    MAX_REPORT_BYTES,
    AdmissionLimits,
    AdmissionReport,
    check_admission,
    parse_report,
)
from model_core.packing.bundle import CheckedBundle
from model_core.packing.files import read_file
from model_core.packing.manifest import BASE_WEIGHTS_FILE, ExpertManifest
from model_core.packing.store import ArtifactStore
from tenants.workshop.follower import Follower
from tenants.workshop.launch import Bounds, ChildOrder, EnclosedChild, clean_environment
from tenants.workshop.protocol import ErrorEvent
from tenants.workshop.weigher import REPORT_FILE, WeighingOrder

if TYPE_CHECKING:
    from cluster.office.desk import Desk

log = logging.getLogger(__name__)

#: Action of the audit record that keeps an admission's figures.
WEIGHED_ACTION = "experts.weigh"
_COMMAND = (sys.executable, "-P", "-s", "-m", "tenants.workshop.weigher")
_LIBRARY_BYTES = 8 << 30
# What the owner can mend; anything else that the child says is a matter of this machine or of the base.
_OWNERS_FAULT = (AdmissionRefused, BundleRefused, NetworkError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighed:
    """An expert that may be admitted.

    Attributes:
        digest: of its bundle: evidence about these bytes and no others.
        report: the figures.
        limits: what they were judged by.
    """

    digest: str
    report: AdmissionReport
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)

    def facts(self) -> dict[str, Any]:
        """What is chained into the audit; limits where an installation has chosen its own."""
        chosen = {name: value for name, value in self.limits if value != getattr(AdmissionLimits(), name)}
        limits = {"limits": chosen} if chosen else {}
        return {"bundle_digest": self.digest, **self.report.facts(), **limits}


class Scales:
    """Weighs checked bundles.

    Args:
        home: folders of the installation.
        artifacts: where bases lie.
        threads: compute threads of a child.
        limits: what is admitted.
        seconds: longest weighing.
        command: what becomes the child; the product's own by default.
    """

    def __init__(
        self,
        home: Home,
        artifacts: ArtifactStore,
        *,
        threads: int = 1,
        limits: AdmissionLimits | None = None,
        seconds: float = LONGEST_WEIGHING_S,
        command: tuple[str, ...] | None = None,
    ) -> None:
        self._home = home
        self._artifacts = artifacts
        self._threads = threads
        self._limits = limits or AdmissionLimits()
        self._seconds = seconds
        self._command = command

    def weigh(self, checked: CheckedBundle) -> Weighed:
        """Weighs an expert's bundle and judges the figures.

        Call it on a thread that lives as long as the child: the kernel ends the child with it.

        Args:
            checked: an expert whose base is in the store.

        Raises:
            AdmissionRefused: a figure is not admitted; the sentence names it.
            BundleRefused: its tensors cannot be loaded.
            WeighingFailed: it could not be weighed; nothing is known about it.
            EnclosureUnavailable: the child could not be confined here.
        """
        manifest = checked.manifest
        if not isinstance(manifest, ExpertManifest):
            raise WeighingFailed("Only experts are weighed; a base is imported with bases.import.")
        base = self._artifacts.get_bundle(manifest.base_digest)
        room = self._home.make_folder(self._home.root / "weighing")
        with TemporaryDirectory(dir=room, prefix="expert-") as folder:
            report = self._weigh_in(Path(folder), base, checked, manifest.base_digest)
        check_admission(report, manifest.calibration, self._limits)
        return Weighed(digest=checked.digest, report=report, limits=self._limits)

    def _weigh_in(
        self, folder: Path, base: Path, checked: CheckedBundle, base_digest: str
    ) -> AdmissionReport:
        work, site = folder / "work", folder / "site"
        work.mkdir(mode=0o700)
        packages = link_packages(site)
        order = WeighingOrder(
            base_folder=str(base),
            base_digest=base_digest,
            expert_folder=str(checked.folder),
            work_folder=str(work),
            # The owner learns the digest, and so the seed, only when it has sealed.
            seed=int(checked.digest.removeprefix("sha256:")[:12], 16),
            threads=self._threads,
        )
        weights_bytes = (base / BASE_WEIGHTS_FILE).stat().st_size + checked.weights_path.stat().st_size
        child = EnclosedChild(
            ChildOrder(
                command=self._command or _COMMAND,
                readable=(base, checked.folder, site, *packages),
                writable=(work,),
                directory=work,
                environment=clean_environment(work, site=site, threads=self._threads),
                bounds=Bounds(
                    memory_bytes=_LIBRARY_BYTES + 4 * weights_bytes,
                    file_bytes=MAX_REPORT_BYTES,
                    folder_bytes=4 * MAX_REPORT_BYTES,
                    seconds=self._seconds,
                ),
            ),
            folder / "child.log",
        )
        child.start(order.to_line())
        end = Follower(child, lambda _event: None, lambda: False).run()
        if end.succeeded:
            return parse_report(read_file(work / REPORT_FILE, MAX_REPORT_BYTES))
        raise _refusal(end.error)


def keep_figures(desk: Desk, expert_id: str, weighed: Weighed) -> None:
    """Chains an admission's figures into the audit, where ``experts.show`` finds them again."""
    subject = f"experts/{expert_id}"
    if desk.audit.last_of(subject, WEIGHED_ACTION) is None:
        desk.audit.append("platform", WEIGHED_ACTION, subject, weighed.facts())


def _refusal(said: ErrorEvent | None) -> ProductError:
    if said is not None:
        error = error_of({"code": said.code, "detail": said.sentence})
        if isinstance(error, _OWNERS_FAULT):
            return error
        log.warning("an expert could not be weighed: %s", said.code)
    return WeighingFailed(
        "The expert could not be weighed here, so it was not admitted. Try again; if it stays, tell the "
        "operator.",
        reason="" if said is None else said.code,
    )

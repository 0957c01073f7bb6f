# SPDX-License-Identifier: Apache-2.0
"""One attempt at one training job: the trusted side of the workshop, without Ray.

It verifies what the child may read, starts the child in its enclosure, turns what the child says into
bounded reports, and, once the child is gone, copies its files out of its reach, seals them with the owner's
key and checks the bundle. The key never enters the enclosure. Layout of a job's work folder::

    lock            held by the attempt and by its child: two attempts never share a folder
    started.json    when the job first began, so that a resumed attempt makes the same bytes
    run/            the child's own: checkpoints, scratch, run/output with the unsealed files
    site/           links to the packages that the child imports
    child.log       its error output; may hold the tenant's text, stays here
    sealed/         the owner-signed bundle, out of the child's reach
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cluster.jobs.errors import DatasetChanged, ForeignBundle, WorkFolderBusy
from cluster.jobs.site import link_packages
from cluster.office.protocol import JobClaim, MetricReading
from model_core.errors import PackingError, ProductError
from model_core.packing.bundle import check_bundle, write_bundle
from model_core.packing.canonical import digest_file
from model_core.packing.files import read_file
from model_core.packing.keys import load_key
from model_core.packing.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, parse_expert_manifest
from model_core.packing.store import ArtifactStore
from tenants.workshop.follower import ChildExit, Follower
from tenants.workshop.launch import Bounds, ChildOrder, EnclosedChild, clean_environment, own_uid
from tenants.workshop.protocol import ChildEvent, JobSpec, MetricEvent, PhaseEvent, ProgressEvent

log = logging.getLogger(__name__)

_LOCK_PATIENCE_S = 30.0
_POINTS_PER_REPORT = 500

State = Literal["placed", "running", "sealing", "sealed", "failed", "stopped"]


class AttemptReport(BaseModel):
    """What an attempt has to say since it was last asked.

    Attributes:
        state: where it stands; the last three are final.
        metrics: new points, oldest first.
        message: phase, progress or grade, for people.
        more: points are left for the next report.
        bundle_folder: the sealed bundle, once ``sealed``.
        grade: how well the child is confined, once it runs.
        code: why it failed.
        sentence: the same for people.
        retry: whether another attempt may succeed.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: State
    metrics: tuple[MetricReading, ...] = ()
    message: str = ""
    more: bool = False
    bundle_folder: str = ""
    grade: str = ""
    code: str = ""
    sentence: str = ""
    retry: bool = False

    @property
    def final(self) -> bool:
        """True if nothing follows."""
        return self.state in ("sealed", "failed", "stopped")


class Attempt:
    """Runs one claim on a thread of its own.

    Args:
        claim: the office's.
        store: where the base comes from.
        threads: compute threads of the child.
        bounds: what the child may use.
        command: what becomes the child; the product's own by default.
    """

    def __init__(
        self,
        claim: JobClaim,
        store: ArtifactStore,
        *,
        threads: int = 1,
        bounds: Bounds | None = None,
        command: tuple[str, ...] | None = None,
    ) -> None:
        self._claim = claim
        self._store = store
        self._threads = threads
        self._bounds = bounds or Bounds()
        self._command = command or (sys.executable, "-P", "-s", "-m", "tenants.workshop.child")
        self._folder = Path(claim.work_folder)
        self._mutex = threading.Lock()
        self._stopping = threading.Event()
        self._state: State = "placed"
        self._points: list[MetricReading] = []
        self._message = ""
        self._end = AttemptReport(state="placed")
        self._grade = ""
        # The kernel kills the child when the thread that started it ends, so this one follows it to its end.
        self._thread = threading.Thread(target=self._run, name=f"attempt-{claim.job_id}", daemon=True)

    def start(self) -> None:
        """Starts; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Asks the child to write a checkpoint and end."""
        self._stopping.set()

    def join(self, timeout_s: float | None = None) -> None:
        """Waits for the end."""
        self._thread.join(timeout_s)

    def report(self) -> AttemptReport:
        """What is new since the last report."""
        with self._mutex:
            points, self._points = self._points[:_POINTS_PER_REPORT], self._points[_POINTS_PER_REPORT:]
            more = bool(self._points)
            fields = {"metrics": tuple(points), "message": self._message, "more": more, "grade": self._grade}
            if self._end.final and not more:
                return self._end.model_copy(update=fields)
            state: State = "running" if self._end.final else self._state
            return AttemptReport(state=state, **fields)

    # ── on the attempt's thread ───────────────────────────────────────────────────────────────────────
    def _run(self) -> None:
        try:
            with self._work_folder() as lock:
                end = self._work(lock)
        except ProductError as err:
            retry = isinstance(err, WorkFolderBusy)
            end = AttemptReport(state="failed", code=err.code, sentence=err.sentence, retry=retry)
        except OSError as err:
            log.exception("an attempt failed")
            sentence = f"The workshop's machine failed the job ({err.strerror}); another attempt may succeed."
            end = AttemptReport(state="failed", code="machine_failed", sentence=sentence, retry=True)
        except Exception as err:
            log.exception("an attempt failed")
            sentence = f"The workshop failed for an unforeseen reason ({type(err).__name__})."
            end = AttemptReport(state="failed", code="workshop_failed", sentence=sentence)
        with self._mutex:
            self._end = end

    def _work(self, lock: int) -> AttemptReport:
        if not self._is_sealed():
            result = self._train(lock)
            if result.stopped:
                return AttemptReport(state="stopped")
            if result.error is not None:
                error = result.error
                return AttemptReport(
                    state="failed", code=error.code, sentence=error.sentence, retry=error.retry
                )
            with self._mutex:
                self._state, self._message = "sealing", "Sealing with the owner's key."
            self._seal()
        return AttemptReport(state="sealed", bundle_folder=str(self._sealed))

    @property
    def _sealed(self) -> Path:
        return self._folder / "sealed"

    def _is_sealed(self) -> bool:
        """Whether an earlier attempt came as far as a good bundle; only its admission was lost."""
        try:
            check_bundle(self._sealed)
        except PackingError:
            return False
        return True

    def _train(self, lock: int) -> ChildExit:
        claim = self._claim
        dataset = Path(claim.dataset_path)
        if digest_file(dataset) != claim.dataset_digest:
            raise DatasetChanged(
                "The stored documents are not those that this job was submitted for; upload them again.",
                dataset_id=claim.dataset_id,
            )
        base = self._store.get_bundle(claim.base_digest)
        run, site = self._folder / "run", self._folder / "site"
        run.mkdir(exist_ok=True, mode=0o700)
        packages = link_packages(site)
        uid = own_uid(claim.tenant, [*packages, Path(sys.executable), Path(sys.prefix), base, dataset, run])
        if uid is not None:
            for root, _, files in os.walk(run):
                for path in (Path(root), *(Path(root) / name for name in files)):
                    os.chown(path, uid, uid, follow_symlinks=False)
        spec = JobSpec(
            job_id=claim.job_id,
            attempt=claim.attempt,
            tenant=claim.tenant,
            name=claim.name,
            base_folder=str(base),
            base_digest=claim.base_digest,
            dataset_file=str(dataset),
            work_folder=str(run),
            output_folder=str(run / "output"),
            recipe=claim.recipe,
            threads=self._threads,
            created_at_us=self._started_at_us(),
            data_license=claim.data_license,
            data_description=claim.data_description,
        )
        order = ChildOrder(
            command=self._command,
            readable=(base, dataset, site, *packages),
            writable=(run,),
            directory=run,
            environment=clean_environment(run, site=site, threads=self._threads),
            uid=uid,
            bounds=self._bounds,
            keep_open=(lock,),
        )
        child = EnclosedChild(order, self._folder / "child.log")
        grade = child.start(spec.to_line())
        with self._mutex:
            self._state, self._grade = "running", str(grade)
            self._message = f"Training in its enclosure ({grade})."
        return Follower(child, self._take, self._stopping.is_set).run()

    def _take(self, event: ChildEvent) -> None:
        with self._mutex:
            if isinstance(event, MetricEvent):
                self._points.append(MetricReading(step=event.step, name=event.name, value=event.value))
            elif isinstance(event, PhaseEvent):
                self._message = event.message or event.name
            elif isinstance(event, ProgressEvent) and event.total:
                phase = self._message.partition(" · ")[0]
                self._message = f"{phase} · {event.done} of {event.total}"

    def _seal(self) -> None:
        """Copies the child's files out of its reach, seals the copies and checks them."""
        output = self._folder / "run" / "output"
        manifest = parse_expert_manifest(read_file(output / MANIFEST_FILE, MAX_MANIFEST_BYTES))
        claim = self._claim
        asked = (claim.tenant, claim.name, claim.base_digest)
        if (manifest.tenant, manifest.name, manifest.base_digest) != asked:
            raise ForeignBundle(
                "The training child packed another expert than the job asked for; nothing was sealed.",
                job_id=claim.job_id,
            )
        draft = self._folder / "sealed.draft"
        for leftover in (draft, self._sealed):
            shutil.rmtree(leftover, ignore_errors=True)
        files: dict[str, Path | bytes] = {name: output / name for name in manifest.files}
        write_bundle(draft, manifest, files, load_key(Path(claim.signing_key_path)))
        draft.rename(self._sealed)

    def _started_at_us(self) -> int:
        path = self._folder / "started.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads(path.read_text())["at_us"])
        at_us = time.time_ns() // 1000
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps({"at_us": at_us}))
        draft.rename(path)
        return at_us

    @contextlib.contextmanager
    def _work_folder(self) -> Iterator[int]:
        """Holds the folder's lock; an earlier attempt's child holds it until it is gone."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + _LOCK_PATIENCE_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise WorkFolderBusy(
                            "An earlier attempt still holds the work folder; it is tried again.",
                            job_id=self._claim.job_id,
                        ) from None
                    time.sleep(0.1)
            yield descriptor
        finally:
            os.close(descriptor)

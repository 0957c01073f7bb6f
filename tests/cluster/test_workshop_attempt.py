# SPDX-License-Identifier: Apache-2.0
"""An attempt at a job: what is verified before, what is copied and sealed after, and what resumes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs.attempt import Attempt, AttemptReport
from cluster.office.protocol import JobClaim
from model_core.packing.bundle import check_bundle
from model_core.packing.canonical import digest_file
from model_core.packing.keys import create_key
from model_core.packing.store import DirectoryStore
from tenants.workshop import enclosure
from tenants.workshop.launch import Bounds

pytestmark = pytest.mark.skipif(enclosure.landlock_abi() < 1, reason="this kernel has no Landlock")

CHILD = """
import json, os, pathlib, signal, sys, time
def say(**k): print(json.dumps(k), flush=True)
spec = json.loads(sys.stdin.readline())
work, output = pathlib.Path(spec["work_folder"]), pathlib.Path(spec["output_folder"])
checkpoint = work / "checkpoint"
done = int(checkpoint.read_text()) if checkpoint.exists() else 0
def stop(*_):
    checkpoint.write_text(str(done)); os._exit(3)
signal.signal(signal.SIGTERM, stop)
say(kind="phase", name="train")
say(kind="metric", step=0, name="resumed_from", value=done)
ready = pathlib.Path(spec["dataset_file"]).read_text() and os.listdir(spec["base_folder"])
for done in range(done, spec["recipe"]["steps"]):
    say(kind="metric", step=done, name="loss", value=1 / (done + 1))
    time.sleep(spec["recipe"].get("pause_s", 0))
    if done == spec["recipe"].get("die_at") and not (work / "died").exists():
        checkpoint.write_text(str(done)); (work / "died").touch(); os.kill(os.getpid(), 9)
output.mkdir(exist_ok=True)
for name, text in json.loads((work / "files.json").read_text()).items():
    (output / name).write_bytes(bytes.fromhex(text))
say(kind="done")
"""


class Job:
    """A claim with everything it needs on disk, and a child that leaves prepared files."""

    def __init__(self, bundles: Any, folder: Path) -> None:
        self.folder = folder
        self.bundles = bundles
        self.store = DirectoryStore(folder / "store")
        base = bundles.base(folder / "base")
        self.base = base
        self.store.put_bundle(folder / "base", base.digest)
        self.dataset = folder / "data.jsonl"
        self.dataset.write_text('{"text": "mine"}\n')
        create_key(folder / "owner.key")
        self.work = folder / "jobs" / "job_1"
        self.prepare()

    def prepare(self, **changes: Any) -> None:
        """What the child will leave behind."""
        manifest = {"base_digest": self.base.digest, "tokenizer_digest": self.base.manifest.tokenizer_digest}
        files = self.bundles.expert_files(**(manifest | changes))
        document = self.bundles.expert_manifest(files, **(manifest | changes))
        left = files | {"manifest.json": document.to_bytes()}
        (self.work / "run").mkdir(parents=True, exist_ok=True)
        text = json.dumps({name: data.hex() for name, data in left.items()})
        (self.work / "run" / "files.json").write_text(text)

    def claim(self, **recipe: Any) -> JobClaim:
        """The claim."""
        return JobClaim(
            job_id="job_1",
            tenant="acme",
            name="letters",
            attempt=1,
            fence=1,
            dataset_id="dat_1",
            dataset_digest=digest_file(self.dataset),
            dataset_path=str(self.dataset),
            base_digest=self.base.digest,
            recipe={"steps": 3} | recipe,
            work_folder=str(self.work),
            signing_key_path=str(self.folder / "owner.key"),
        )

    def attempt(self, claim: JobClaim) -> Attempt:
        """An attempt whose child is the script above."""
        command = (sys.executable, "-I", "-c", CHILD)
        return Attempt(claim, self.store, bounds=Bounds(stop_grace_s=5.0), command=command)

    def run(self, claim: JobClaim) -> tuple[AttemptReport, dict[str, list[float]]]:
        """Runs to the end; the last report and all points by name."""
        attempt = self.attempt(claim)
        attempt.start()
        attempt.join(30)
        report = attempt.report()
        points: dict[str, list[float]] = {}
        for point in report.metrics:
            points.setdefault(point.name, []).append(point.value)
        return report, points


@pytest.fixture
def job(bundles: Any, tmp_path: Path) -> Job:
    """A fresh job."""
    return Job(bundles, tmp_path)


def test_finished_child_leaves_a_bundle_that_the_owner_sealed(job: Job) -> None:
    """Metrics arrive, the bundle is the owner's, and it lies where the child cannot write."""
    report, points = job.run(job.claim())
    assert (report.state, report.code) == ("sealed", "")
    assert points["loss"] == [1.0, 0.5, 1 / 3]
    assert report.grade == "weaker: no own uid"
    checked = check_bundle(Path(report.bundle_folder))
    assert checked.seal.signature("owner") is not None
    assert checked.seal.signature("admission") is None
    assert job.work / "run" not in Path(report.bundle_folder).parents


def test_sealed_job_is_not_trained_again(job: Job) -> None:
    """Only the admission was lost: the next attempt reports the same bundle at once."""
    first, _ = job.run(job.claim())
    before = check_bundle(Path(first.bundle_folder)).digest
    second, points = job.run(job.claim())
    assert (second.state, points) == ("sealed", {})
    assert check_bundle(Path(second.bundle_folder)).digest == before


def test_killed_child_resumes_from_its_checkpoint(job: Job) -> None:
    """SIGKILL in the middle: the attempt may be retried, and the next one goes on where it was."""
    claim = job.claim(steps=6, die_at=3)
    first, points = job.run(claim)
    assert (first.state, first.code, first.retry) == ("failed", "child_died", True)
    assert points["resumed_from"] == [0]
    second, points = job.run(claim)
    assert second.state == "sealed"
    assert points["resumed_from"] == [3]


def test_stopped_child_writes_its_checkpoint_and_frees_the_folder(job: Job) -> None:
    """Asked to stop, it ends in order; the lock is free for the next attempt."""
    claim = job.claim(steps=200, pause_s=0.05)
    attempt = job.attempt(claim)
    attempt.start()
    while not attempt.report().metrics:
        pass
    attempt.stop()
    attempt.join(30)
    assert attempt.report().state == "stopped"
    assert (job.work / "run" / "checkpoint").exists()
    job.prepare()
    assert job.run(job.claim())[0].state == "sealed"


def test_changed_documents_are_not_trained_on(job: Job) -> None:
    """The dataset is compared with its digest before any child starts."""
    claim = job.claim()
    job.dataset.write_text('{"text": "changed"}\n')
    report, points = job.run(claim)
    assert (report.state, report.code, points) == ("failed", "dataset_changed", {})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"tenant": "other"}, "foreign_bundle"),
        ({"name": "another-name"}, "foreign_bundle"),
        ({"base_digest": "sha256:" + "9" * 64}, "foreign_bundle"),
    ],
)
def test_child_cannot_pack_another_expert(job: Job, changes: dict[str, Any], code: str) -> None:
    """What the owner's key signs is what the owner asked for."""
    job.prepare(**changes)
    report, _ = job.run(job.claim())
    assert (report.state, report.code) == ("failed", code)
    assert not (job.work / "sealed").exists()


def test_child_cannot_smuggle_a_link_into_the_bundle(job: Job) -> None:
    """A link in place of a file is refused, not followed: the copy would hold what the child cannot read."""
    output = job.work / "run" / "output"
    output.mkdir(parents=True)
    (output / "metrics.jsonl").symlink_to(job.folder / "owner.key")
    script = CHILD.replace(
        "    (output / name).write_bytes", '    if name != "metrics.jsonl": (output / name).write_bytes'
    )
    attempt = Attempt(job.claim(), job.store, command=(sys.executable, "-I", "-c", script))
    attempt.start()
    attempt.join(30)
    report = attempt.report()
    assert (report.state, report.code) == ("failed", "bundle_unsafe_path")


def test_own_child_program_starts_in_its_enclosure(job: Job) -> None:
    """The product's own child starts enclosed, reads its job line and refuses this tiny dataset."""
    attempt = Attempt(job.claim(), job.store)
    attempt.start()
    attempt.join(60)
    report = attempt.report()
    assert report.state == "failed"
    assert report.code not in ("child_died", "machine_failed", "enclosure_unavailable", "training_failed"), (
        report.sentence,
        (job.work / "child.log").read_text()[-2000:],
    )

# SPDX-License-Identifier: Apache-2.0
"""Work at the desk for the foreman: claims, reports, and the admission of what a job has sealed.

Admission is where a bundle enters the marketplace: it is the owner's (tenant, key), it is what the job was
asked for (base, datasets), it was weighed beside the public expert (``cluster.office.scales``), and only then
it is countersigned and stored. Here every byte is checked by digest; no tensor is loaded in this process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.home import Home
from cluster.office.protocol import JobClaim, JobDirection, JobOutcome, MetricReading
from cluster.office.scales import Weighed, keep_figures
from cluster.operations.staging import documents_path
from model_core.errors import BundleWrongBase, UntrustedKey
from model_core.packing.bundle import CheckedBundle, check_bundle, check_fits_base, countersign_bundle
from model_core.packing.keys import load_or_create_key
from model_core.packing.manifest import ExpertManifest
from model_core.packing.store import ArtifactStore
from policy.records.assets import BaseRecord
from tenants.jobs import JobRecord, JobState, MetricPoint

if TYPE_CHECKING:
    from cluster.office.desk import Desk


def claim_job(desk: Desk, foreman_id: str, max_running_per_tenant: int) -> JobClaim | None:
    """Claims the next job and says where everything it needs lies."""
    claim = desk.jobs.claim(foreman_id, max_running_per_tenant)
    if claim is None:
        return None
    job = claim.job
    dataset = desk.datasets.get(job.dataset_id)
    folder = desk.home.make_folder(desk.home.make_folder(desk.home.jobs(job.tenant)) / job.id)
    key_path = desk.home.owner_key(job.tenant)
    load_or_create_key(key_path)
    return JobClaim(
        job_id=job.id,
        tenant=job.tenant,
        name=job.name,
        attempt=claim.attempt,
        fence=claim.fence,
        dataset_id=job.dataset_id,
        dataset_digest=dataset.stored_digest,
        dataset_path=str(documents_path(desk.home, job.tenant, dataset.stored_digest)),
        base_digest=job.base_digest,
        recipe=job.recipe,
        work_folder=str(folder),
        signing_key_path=str(key_path),
        data_license=dataset.license,
        data_description=dataset.card.description,
    )


def report_progress(
    desk: Desk, job_id: str, fence: int, *, state: str, metrics: list[MetricReading], message: str
) -> JobDirection:
    """Takes a report; a report of the state that the job is in already adds its points."""
    if state == JobState.CANCELLED.value:
        return JobDirection(cancel_requested=desk.jobs.cancelled(job_id, fence).cancel_requested)
    points = [MetricPoint(step=point.step, name=point.name, value=point.value) for point in metrics]
    record = desk.jobs.progress(job_id, fence, JobState(state), points, message)
    return JobDirection(cancel_requested=record.cancel_requested)


@dataclass(frozen=True, kw_only=True, slots=True)
class Admissible:
    """What a finished job's bundle has to be.

    Attributes:
        job: the job as it stood when its attempt asked for admission.
        base: the base that it was to train against.
    """

    job: JobRecord
    base: BaseRecord


def open_case(desk: Desk, job_id: str) -> Admissible:
    """Reads what a bundle is held against."""
    job = desk.jobs.get(job_id)
    return Admissible(job=job, base=desk.register.base(job.base_digest))


def inspect_sealed(home: Home, case: Admissible, folder: Path) -> CheckedBundle:
    """Checks that a folder holds what the job was asked for.

    It runs outside any unit of work, since hashing a bundle would hold up everybody's writes.

    Raises:
        PackingError: the folder is no bundle sealed by its owner.
        UntrustedKey: it names another tenant, or somebody else sealed it.
        BundleWrongBase: it was trained against another base than the job asked for.
    """
    checked = check_bundle(folder)
    manifest, job = checked.manifest, case.job
    if not isinstance(manifest, ExpertManifest):
        raise BundleWrongBase("The job sealed something else than an expert.", job_id=job.id)
    check_fits_base(manifest, case.base.manifest, case.base.base_digest)
    signature = checked.seal.signature("owner")
    known = load_or_create_key(home.owner_key(job.tenant)).public_key
    if manifest.tenant != job.tenant or signature is None or signature.public_key != known:
        raise UntrustedKey(
            "The bundle is not sealed by the job's own tenant. Its attempt is given up.", job_id=job.id
        )
    return checked


def store_bundle(home: Home, artifacts: ArtifactStore, checked: CheckedBundle) -> None:
    """Countersigns and stores a bundle that was inspected and weighed, outside any unit of work.

    A stored bundle that nobody registers is harmless and is found again by the next attempt; a registered
    bundle that was not stored could never be served, hence this order.
    """
    if not artifacts.has(checked.digest):
        countersign_bundle(checked.folder, load_or_create_key(home.admission_key))
        artifacts.put_bundle(checked.folder, checked.digest)


def admit_bundle(
    desk: Desk, case: Admissible, fence: int, checked: CheckedBundle, weighed: Weighed
) -> JobOutcome:
    """Registers a stored bundle as an expert version and closes its job.

    Asked again after a lost answer it finds the job finished with the same bundle and answers the same.

    Raises:
        StaleAttempt: a newer attempt holds the job.
    """
    manifest = checked.manifest
    if not isinstance(manifest, ExpertManifest):
        raise BundleWrongBase("Only experts are admitted.", job_id=case.job.id)
    job = desk.jobs.get(case.job.id)
    expert = desk.register.admit_expert(manifest, checked.digest, (job.dataset_id,), job.tenant, job.id)
    desk.jobs.finish(
        job.id, fence, checked.digest, {"expert_id": expert.expert_id, "version": expert.version}
    )
    keep_figures(desk, expert.expert_id, weighed)
    if job.state is not JobState.SUCCEEDED:
        desk.audit.append(
            "platform",
            "experts.admit",
            f"experts/{expert.expert_id}",
            {"bundle_digest": checked.digest, "job_id": job.id, "tenant": job.tenant},
        )
    return JobOutcome(expert_id=expert.expert_id, bundle_digest=checked.digest)

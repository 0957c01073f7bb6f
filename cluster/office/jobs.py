# SPDX-License-Identifier: Apache-2.0
"""Work at the desk for the foreman: claims, reports, and the admission of what a job has sealed.

Admission is where a bundle enters the marketplace: it is the owner's (tenant, key), it is what the job was
asked for (base, datasets), and only then it is countersigned and stored. What is inside the weights file is
bounded where tensors are known (hosts check again before loading); here every byte is checked by digest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cluster.office.protocol import JobClaim, JobDirection, JobOutcome, MetricReading
from cluster.operations.staging import documents_path
from model_core.errors import BundleWrongBase, UntrustedKey
from model_core.packing.bundle import CheckedBundle, check_bundle, check_fits_base, countersign_bundle
from model_core.packing.keys import load_or_create_key
from model_core.packing.manifest import ExpertManifest
from tenants.accounts.jobs import MetricPoint
from tenants.jobs import JobState

if TYPE_CHECKING:
    from cluster.office.desk import Desk
    from tenants.accounts.jobs import JobRecord


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


def finish_job(desk: Desk, job_id: str, fence: int, bundle_folder: str) -> JobOutcome:
    """Admits a job's bundle: checks, countersigns, stores, registers, closes the job.

    Sent again after a lost answer it finds the job finished with the same bundle and answers the same.

    Raises:
        PackingError: the folder is no bundle sealed by the owner.
        UntrustedKey: it names another tenant, or somebody else sealed it.
        BundleWrongBase: it was trained against another base than the job asked for.
        StaleAttempt: a newer attempt holds the job.
    """
    job = desk.jobs.get(job_id)
    checked = check_bundle(Path(bundle_folder))
    manifest = _admissible(desk, job, checked)
    # The order matters for a crash in between: a stored bundle that nobody registered is harmless and is
    # found again by the next attempt, a registered bundle that was not stored could never be served.
    if not desk.artifacts.has(checked.digest):
        countersign_bundle(checked.folder, load_or_create_key(desk.home.admission_key))
        desk.artifacts.put_bundle(checked.folder, checked.digest)
    expert = desk.register.admit_expert(manifest, checked.digest, (job.dataset_id,), job.tenant, job_id)
    facts = {"expert_id": expert.expert_id, "version": expert.version}
    already = job.state == JobState.SUCCEEDED
    desk.jobs.finish(job_id, fence, checked.digest, facts)
    if not already:
        desk.audit.append(
            "platform",
            "experts.admit",
            f"experts/{expert.expert_id}",
            {"bundle_digest": checked.digest, "job_id": job_id, "tenant": job.tenant},
        )
    return JobOutcome(expert_id=expert.expert_id, bundle_digest=checked.digest)


def _admissible(desk: Desk, job: JobRecord, checked: CheckedBundle) -> ExpertManifest:
    manifest = checked.manifest
    if not isinstance(manifest, ExpertManifest) or manifest.base_digest != job.base_digest:
        raise BundleWrongBase(
            "The job sealed something else than an expert against the base it was asked for.", job_id=job.id
        )
    signature = checked.seal.signature("owner")
    known = load_or_create_key(desk.home.owner_key(job.tenant)).public_key
    if manifest.tenant != job.tenant or signature is None or signature.public_key != known:
        raise UntrustedKey(
            "The bundle is not sealed by the job's own tenant. Its attempt is given up.", job_id=job.id
        )
    base = desk.register.base(manifest.base_digest)
    check_fits_base(manifest, base.manifest, base.base_digest)
    return manifest

# SPDX-License-Identifier: Apache-2.0
"""What may be asked of the office, and the documents that cross its counter.

The office is the only process that opens the database. Two kinds of callers stand before it: people and
programs with a credential (``call``: one operation of the visible table) and the platform's own processes
(gateway, model hosts, foreman, reconciler), which use the typed methods of :class:`OfficeProtocol`. This
module knows neither Ray nor SQL: a test can put any object with these methods in the office's place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from model_core.errors import ProductError

#: Name and namespace of the office actor.
OFFICE_NAME = "office"
NAMESPACE = "marketplace"


class Message(BaseModel):
    """A frozen document between processes; readers ignore fields they do not know."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Caller(Message):
    """Who a credential belongs to.

    Attributes:
        principal_id: the principal behind the key.
        name: its display name.
        tenant: slug of its tenant (``platform`` for the operator).
        roles: role names, sorted.
        key_id: the key that was shown; never the secret.
    """

    principal_id: str
    name: str
    tenant: str
    roles: tuple[str, ...]
    key_id: str


class Admission(Message):
    """A durable reservation: one request may generate up to ``reserved_tokens`` on this deployment.

    Attributes:
        request_id: names the reservation; usage is reported against it.
        deployment: the deployment's name (the ``model`` of the OpenAI API).
        base_digest: which model host answers.
        tenant: the consumer's tenant slug; part of every cache key (law 5).
        principal_id: who asked.
        epoch: the register's epoch when the request was admitted.
        composition_digest: the composition permitted at that epoch.
        reserved_tokens: completion tokens held against the budget, over all ``n`` choices.
    """

    request_id: str
    deployment: str
    base_digest: str
    tenant: str
    principal_id: str
    epoch: int
    composition_digest: str
    reserved_tokens: int


class UsageRecord(Message):
    """What one chunk of a response cost, as the host journaled it before the chunk was released.

    Attributes:
        request_id: the admission it belongs to.
        deployment: deployment name.
        epoch: epoch the chunk was computed under.
        composition_digest: composition the chunk was computed with.
        prompt_tokens: prompt tokens charged by this record (the first record of a request carries them).
        completion_tokens: tokens generated in this chunk.
        experts: bundle digest (or ``"public"``) to millionths of a token; sums to
            ``completion_tokens * 1_000_000``.
        at_us: host's time of the record, microseconds since the Unix epoch.
        final: True on the last record of the request; the rest of the reservation is released.
    """

    request_id: str
    deployment: str
    epoch: int
    composition_digest: str
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    experts: dict[str, int] = Field(default_factory=dict)
    at_us: int
    final: bool = False


class EpochNews(Message):
    """The answer to ``wait_epoch``: the newest published epoch, with its snapshot when the asker lacks it.

    A host's lease runs ``lease_s`` from the moment the host *sent* the question that this answers; the
    office reads the epoch from the database after it received the question, so an epoch committed before
    the question was sent is always in the answer.

    Attributes:
        epoch: newest committed epoch.
        snapshot_digest: digest of its snapshot.
        snapshot_json: canonical snapshot bytes (``policy.facts.snapshot.Snapshot.from_json``); None if the
            asker already has this epoch, or gets ``changes_json`` instead.
        changes_json: what leads there from the epoch that the asker has seen (``policy.facts.delta.Delta``);
            only for askers who take changes, and None where the office cannot say.
        lease_s: length of the lease.
        office_at_us: the office's clock when it answered.
        received_us: the office's clock when it received the question; 0 if it does not say.
        seen_digest: digest of the snapshot that the office published as the epoch that the asker has seen;
            empty if it does not say or never published it.
        stopped: open requests that must end though no epoch says so, with the cause of each
            (``policy.billing.stopped``); read after the question was received, like the epoch.
    """

    epoch: int
    snapshot_digest: str
    snapshot_json: bytes | None = None
    changes_json: bytes | None = None
    lease_s: float
    office_at_us: int
    received_us: int = 0
    seen_digest: str = ""
    stopped: dict[str, str] = Field(default_factory=dict)


class MetricReading(Message):
    """One point of a training curve."""

    step: int
    name: str
    value: float


class JobClaim(Message):
    """One attempt at one training job, handed to the foreman.

    Attributes:
        job_id: the job.
        tenant: slug of its tenant.
        name: the name its expert will carry.
        attempt: 1 for the first attempt.
        fence: must accompany every report of this attempt; an older fence is refused (``StaleAttempt``).
        dataset_id: the dataset trained on.
        dataset_digest: digest of the stored documents.
        dataset_path: file of the tenant's documents (JSON lines), readable by platform code only.
        base_digest: the base to train against; fetch it with the artifact store.
        recipe: the job's training options.
        work_folder: folder of this job, private to it; kept between attempts so that training resumes.
        signing_key_path: the owner's Ed25519 key; signs the bundle outside the training child.
        data_license: SPDX expression of the documents, for the expert's data card.
        data_description: the owner's words about them, for the data card.
    """

    job_id: str
    tenant: str
    name: str
    attempt: int
    fence: int
    dataset_id: str
    dataset_digest: str
    dataset_path: str
    base_digest: str
    recipe: dict[str, Any]
    work_folder: str
    signing_key_path: str
    data_license: str = "LicenseRef-unstated"
    data_description: str = ""


class JobDirection(Message):
    """What the office answers to a progress report."""

    cancel_requested: bool


class JobOutcome(Message):
    """What admission made of a finished job's bundle."""

    expert_id: str
    bundle_digest: str


class OfficeHealth(Message):
    """The office's own state, without secrets.

    Attributes:
        status: ``ok`` once the database is open and upgraded.
        epoch: newest published epoch.
        schema_revision: Alembic revision of the database.
        pid: process id of the office.
        started_at_us: when this incarnation started.
    """

    status: Literal["ok"]
    epoch: int
    schema_revision: str
    pid: int
    started_at_us: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What crosses the process border: a value, or the refusal that the caller's side raises.

    Attributes:
        value: the answer, None for a refusal.
        refusal: what was refused and why.
    """

    value: Any = None
    refusal: ProductError | None = None


class OfficeProtocol(Protocol):
    """Everything the office does for other processes.

    Every method MUST run in exactly one unit of work, MUST raise only ``ProductError`` (a lost office is
    ``OfficeUnavailable``), and MUST have committed what it answers. Methods marked *repeatable* may be
    sent again after a lost answer without a second effect.
    """

    async def call(
        self, op: str, credential: str, payload: dict[str, Any], *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Runs one operation of the table as the credential's principal.

        Args:
            op: operation name, e.g. ``consents.withdraw``.
            credential: the API key secret.
            payload: path, query and body fields merged.
            idempotency_key: makes a write repeatable: the same key with the same payload answers the
                first result again; with another payload it is refused.
        """
        ...

    async def identify(self, credential: str) -> Caller:
        """Says whose credential this is, or raises as authentication does. Repeatable."""
        ...

    async def health(self) -> OfficeHealth:
        """Answers once the database is open. Repeatable."""
        ...

    async def admit_request(
        self,
        credential: str,
        deployment: str,
        max_tokens: int,
        n: int = 1,
        prompt_tokens: int = 0,
        continues: str = "",
    ) -> Admission:
        """Authenticates, checks access to the deployment, holds the budget.

        Not repeatable by itself: a reservation whose answer was lost expires. ``continues`` names the first
        request of an answer that goes on after it lost its replica.
        """
        ...

    async def release_request(self, request_id: str) -> None:
        """Gives back what a request still holds, when no host began it.

        Repeatable; usage that a host reports all the same is booked.
        """
        ...

    async def record_usage(self, server_id: str, sequence: int, batch: list[UsageRecord]) -> int:
        """Stores a batch exactly once and answers the last accepted sequence of this server.

        Repeatable: the same (server_id, sequence) with the same payload is a no-op, with another it is
        refused.
        """
        ...

    async def wait_epoch(
        self, server_id: str, seen_epoch: int, timeout_s: float = 0.5, changes: bool = False
    ) -> EpochNews:
        """Long-polls for an epoch above ``seen_epoch`` (-1 asks for the newest at once). Repeatable.

        With ``changes`` the answer may hold what changed in place of the whole snapshot.
        """
        ...

    async def acknowledge(
        self, server_id: str, epoch: int, snapshot_digest: str, compositions: dict[str, str]
    ) -> None:
        """Records that a server runs these compositions (deployment → digest). Repeatable."""
        ...

    async def claim_job(self, foreman_id: str, max_running_per_tenant: int = 1) -> JobClaim | None:
        """Claims the next job fairly between tenants, or None.

        A lost answer costs one attempt, which ``requeue_orphans`` gives back.
        """
        ...

    async def requeue_orphans(self, foreman_id: str) -> list[str]:
        """Puts every live job back in the queue and answers their ids. Repeatable.

        There is one foreman; it asks this once when it starts, before its first claim, since attempts of
        its former life follow nobody.
        """
        ...

    async def job_progress(
        self, job_id: str, fence: int, state: str, metrics: list[MetricReading], message: str = ""
    ) -> JobDirection:
        """Reports an attempt's state (placed, running, sealing) and new metric points. Repeatable."""
        ...

    async def finish_job(self, job_id: str, fence: int, bundle_folder: str) -> JobOutcome:
        """Admits the owner-signed bundle and closes the job. Repeatable.

        Verifies, countersigns, stores, and registers the expert version.
        """
        ...

    async def fail_job(self, job_id: str, fence: int, code: str, sentence: str, *, retry: bool) -> None:
        """Closes an attempt; with ``retry`` the job is queued again while attempts remain. Repeatable."""
        ...

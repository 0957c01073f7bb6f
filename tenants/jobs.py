# SPDX-License-Identifier: Apache-2.0
"""A training job: its states, the legal steps between them, what is told of it. Knows no SQL and no Ray."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from tenants.errors import IllegalTransition


class JobState(StrEnum):
    """Where a job stands. The last three are final."""

    QUEUED = "queued"
    PLACED = "placed"
    RUNNING = "running"
    SEALING = "sealing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
LIVE: Final = frozenset({JobState.PLACED, JobState.RUNNING, JobState.SEALING})

# Every live state may fall back to queued: its machine can die at any moment, and the next attempt resumes
# from the checkpoint. No final state is ever left.
LEGAL: Final[frozenset[tuple[JobState, JobState]]] = frozenset(
    {
        (JobState.QUEUED, JobState.PLACED),
        (JobState.PLACED, JobState.RUNNING),
        (JobState.RUNNING, JobState.SEALING),
        (JobState.SEALING, JobState.SUCCEEDED),
        (JobState.QUEUED, JobState.CANCELLED),
    }
    | {(state, JobState.QUEUED) for state in LIVE}
    | {(state, JobState.FAILED) for state in LIVE}
    | {(state, JobState.CANCELLED) for state in LIVE}
)


def check_transition(old: JobState, new: JobState) -> None:
    """Lets a legal step pass.

    Raises:
        IllegalTransition: the step is not in ``LEGAL``.
    """
    if (old, new) not in LEGAL:
        raise IllegalTransition(
            f"A {old.value} job can not become {new.value}; read the job again before acting on it.",
            old=old.value,
            new=new.value,
        )


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class JobRecord(_Value):
    """A job as it stands now."""

    id: str
    tenant: str
    principal_id: str
    name: str
    dataset_id: str
    base_digest: str
    recipe: dict[str, Any]
    state: JobState
    message: str
    attempts: int
    fence: int
    cancel_requested: bool
    foreman_id: str | None
    bundle_digest: str | None
    result: dict[str, Any]
    error_code: str | None
    error_sentence: str | None
    created_at_us: int
    updated_at_us: int
    finished_at_us: int | None


class JobClaim(_Value):
    """The right to carry out one attempt; reports must show the fence."""

    job: JobRecord
    attempt: int
    fence: int


class MetricPoint(_Value):
    """One point of a curve."""

    step: int
    name: str
    value: float


class JobEvent(_Value):
    """One step in the life of a job."""

    at_us: int
    attempt: int
    old_state: str
    new_state: str
    note: str

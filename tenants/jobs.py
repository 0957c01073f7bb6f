# SPDX-License-Identifier: Apache-2.0
"""The life of a training job: its states and the legal steps between them. Pure; knows no SQL and no Ray."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

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

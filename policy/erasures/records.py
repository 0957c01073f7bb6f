# SPDX-License-Identifier: Apache-2.0
"""What the rooms of erasure hand out: frozen documents, never rows."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from policy.facts.terms import AtUs

SubjectKind = Literal["expert", "dataset", "personal_data"]
HeldKind = Literal["expert", "dataset", "tenant"]
Outcome = Literal["planned", "erased", "absent", "kept", "named"]

DONE: Final = frozenset({"erased", "absent", "kept", "named"})
"""Outcomes after which nothing is left to do; ``kept`` and ``named`` say in their facts why."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Hold(_Record):
    """A legal hold and whether it stands."""

    id: str
    tenant: str
    subject_kind: HeldKind
    subject_id: str
    reason: str
    set_by: str
    set_at_us: AtUs
    lifted_by: str | None = None
    lifted_at_us: AtUs | None = None

    @property
    def stands(self) -> bool:
        """Whether it was not lifted."""
        return self.lifted_at_us is None


class Copy(_Record):
    """One place where something lies, or somebody who received it.

    Attributes:
        kind: artifact, work_folder, documents, vault, server, packed_files, recipient, export, backup,
            tombstone or residual.
        place: names it within its kind: a digest, a job, a server, a tenant.
        outcome: what became of it; ``planned`` until then.
        facts: what is known of it, without personal data.
    """

    kind: str
    place: str
    outcome: Outcome = "planned"
    facts: dict[str, Any] = {}
    at_us: AtUs = 0

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.outcome in DONE


class Erasure(_Record):
    """A request to erase, where it stands, and every copy."""

    id: str
    tenant: str
    subject_kind: SubjectKind
    subject_id: str
    reason: str
    requested_by: str
    requested_at_us: AtUs
    state: Literal["requested", "approved", "completed", "rejected"]
    decided_by: str | None
    decided_at_us: AtUs | None
    epoch: int | None
    completed_at_us: AtUs | None
    copies: tuple[Copy, ...] = ()


class Notification(_Record):
    """Something that a tenant has to know."""

    id: str
    tenant: str
    kind: str
    object: str
    body: dict[str, Any]
    at_us: AtUs
    acknowledged_by: str | None
    acknowledged_at_us: AtUs | None

# SPDX-License-Identifier: Apache-2.0
"""What the consent book hands out: frozen documents, never rows."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from policy.consents.status import Status
from policy.facts.snapshot import ConsentFact
from policy.facts.terms import AtUs
from policy.records.paper import ConsentPaper, NoticeRecord


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class FileEvent(_Record):
    """Something that happened to a consent record.

    Attributes:
        n: counts from 1, without gaps.
        principal_id: who did it; None where time did.
        notice_digest: what was shown then, if something new was.
        evidence_ref: salted hash of what shows it.
        consent_id: the word that this event began or ended.
        epoch: the publication that brought it into force.
    """

    n: int
    event: str
    at_us: AtUs
    principal_id: str | None
    channel: str
    notice_digest: str | None = None
    evidence_ref: str | None = None
    consent_id: str | None = None
    epoch: int | None = None


class ConsentFile(_Record):
    """A consent record with its whole life.

    Attributes:
        paper: what was written down; None for words that were given without any.
        notice: what was shown last.
        words: the words that it led to, oldest first; at most one holds at a time.
        status: where it stands now; only ``given`` and ``renewed`` are valid.
        ends_us: when its last word ends by itself; None for never, or where there is no word.
    """

    record_id: str
    tenant: str
    paper: ConsentPaper | None
    notice: NoticeRecord | None
    events: tuple[FileEvent, ...]
    words: tuple[ConsentFact, ...]
    status: Status
    valid: bool
    ends_us: AtUs | None
    at_us: AtUs


class Expiring(_Record):
    """A consent that ends soon, with what a reminder needs."""

    id: str
    record_id: str
    tenant: str
    expert_id: str
    dataset_id: str | None
    action: str
    purpose: str
    region: str
    recipient: str
    valid_until_us: AtUs
    left_us: int

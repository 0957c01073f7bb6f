# SPDX-License-Identifier: Apache-2.0
"""What is written down when consent is given, and the notice that was read: the fields of ISO/IEC TS 27560.

Nothing here names a person: whoever the data is about, and what they signed, are references into the vault
(``policy.consents.vault``), so that these documents may be kept for ever and chained into the audit.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from model_core.packing.canonical import digest_of
from policy.facts.terms import ANY, AtUs

SCHEMA_VERSION: Final = "ISO-IEC-TS-27560-2023/1"

LegalBasis = Literal[
    "consent",
    "contract",
    "legal_obligation",
    "vital_interest",
    "public_interest",
    "legitimate_interest",
    "no_personal_data",
]
SubjectKind = Literal["owner", "data_subjects", "organisation"]
Channel = Literal["api", "console", "cli", "paper", "other"]

_Short = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200)]
_Reference = Annotated[str, StringConstraints(pattern=r"^salted-sha256:[0-9a-f]{64}$")]
_Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]

ONE_ACT: Final = "one act of one person, at once: marketplace consent withdraw, or the console's consents"


class AskedUse(BaseModel):
    """The use that consent is asked for, in the words of the register."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    expert_id: str
    action: str = "infer"
    purpose: str
    region: str = ANY
    recipient: str = ANY
    commercial: bool = False
    dataset_id: str | None = None


class ConsentPaper(BaseModel):
    """What a consent record says beside the word itself.

    Attributes:
        legal_basis: what the processing rests on; ``no_personal_data`` where the data names nobody.
        jurisdiction: whose law applies, e.g. ``eu`` or ``DE``.
        controller: who decides about the processing; empty means the owner's tenant.
        subject_kind: who consents: the owner, the people whom the data is about, or an organisation.
        subject_ref: salted hash of whom it is; the text is in the vault.
        notice_digest: the notice that was shown.
        evidence_ref: salted hash of what shows that consent was given.
        channel: by which way it came.
        withdrawal_method: how it is taken back.
        asked: what was asked for, where the record began with a question.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    legal_basis: LegalBasis = "consent"
    jurisdiction: _Short = ""
    controller: _Short = ""
    subject_kind: SubjectKind = "owner"
    subject_ref: _Reference | None = None
    notice_digest: _Digest | None = None
    evidence_ref: _Reference | None = None
    channel: Channel = "api"
    data_categories: tuple[_Short, ...] = Field(default=(), max_length=50)
    storage_location: _Short = ""
    retention: _Short = ""
    withdrawal_method: _Short = ONE_ACT
    asked: AskedUse | None = None


class Notice(BaseModel):
    """What was shown before consent was asked for: a text with its purposes in plain words, never changed.

    Attributes:
        language: BCP 47 tag of the text.
        version: the author's own name for this wording.
        purposes: purpose of the vocabulary to what it means, in words a reader understands.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$", max_length=35)]
    version: Annotated[str, StringConstraints(min_length=1, max_length=60)]
    text: Annotated[str, StringConstraints(min_length=1, max_length=50_000)]
    purposes: dict[
        Annotated[str, StringConstraints(max_length=100)],
        Annotated[str, StringConstraints(min_length=1, max_length=1000)],
    ] = Field(default_factory=dict, max_length=100)

    @property
    def digest(self) -> str:
        """The address of the notice: equal words in one language and version have one."""
        return digest_of({"kind": "consent-notice", **self.model_dump(mode="json")})


class NoticeRecord(Notice):
    """A notice as it is kept."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    tenant: str
    at_us: AtUs

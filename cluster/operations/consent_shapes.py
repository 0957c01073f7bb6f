# SPDX-License-Identifier: Apache-2.0
"""What is asked and answered about consent records: the documents alone, without what is done with them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from cluster.operations.table import Answer, Page, Request, several
from policy.consents.records import ConsentFile, Expiring
from policy.facts.terms import ANY
from policy.records.paper import Channel, LegalBasis, SubjectKind

MAX_US = 2**53
DAY_US = 86_400_000_000
#: Fields that may name people; they go into the vault and never into the audit.
PERSONAL = frozenset({"subject", "evidence"})


class Papered(Request):
    """What is written down with a consent."""

    legal_basis: LegalBasis = Field(default="consent", description="what the processing rests on")
    jurisdiction: str = Field(default="", max_length=200, description="whose law applies, e.g. eu")
    controller: str = Field(default="", max_length=200, description="who decides about it; you if left out")
    subject_kind: SubjectKind = Field(default="owner", description="who consents")
    subject: str | None = Field(
        default=None,
        max_length=1000,
        description="who they are; kept in the vault, from which it can be erased",
    )
    evidence: str | None = Field(
        default=None, max_length=20_000, description="what shows that they consented; kept in the vault"
    )
    notice_digest: str | None = Field(
        default=None,
        pattern="^sha256:[0-9a-f]{64}$",
        description="the notice that was shown (notices.create)",
    )
    channel: Channel = Field(default="api", description="by which way the consent came")
    data_categories: Annotated[tuple[str, ...], BeforeValidator(several)] = Field(default=(), max_length=50)
    storage_location: str = Field(default="", max_length=200)
    retention: str = Field(default="", max_length=200, description="for how long the data is kept")


class WhichConsent(Request):
    """Which consent."""

    consent_id: str = Field(max_length=60, description="of a consent or of its record")


class RenewConsent(WhichConsent, Papered):
    """The same permission for longer, to be approved by somebody else."""

    valid_from_us: int | None = Field(
        default=None, ge=0, lt=MAX_US, description="now, or when the present ends"
    )
    valid_until_us: int | None = Field(default=None, ge=0, lt=MAX_US, description="without end if left out")


class AskConsent(Papered):
    """A question to the people behind your data, before there is an answer."""

    expert_id: str = Field(max_length=60, description="one of your experts, or * for all of them")
    action: str = Field(default="infer", max_length=60)
    purpose: str = Field(max_length=100)
    region: str = Field(default=ANY, max_length=100)
    recipient: str = Field(default=ANY, max_length=63)
    commercial: bool = False
    dataset_id: str | None = Field(default=None, max_length=60)


class RefuseConsent(Request):
    """A question that was answered with no."""

    record_id: str = Field(max_length=60)
    evidence: str | None = Field(default=None, max_length=20_000, description="kept in the vault")


class FileView(ConsentFile):
    """A consent record; the texts are shown to its owner alone, and None once they are erased."""

    subject: str | None = None
    evidence: str | None = None


class FilePage(Answer):
    """Consent records."""

    items: tuple[ConsentFile, ...]
    next: str | None = None


class ExpiringQuery(Page):
    """How soon."""

    within_days: int = Field(default=30, ge=1, le=3650, description="ending within so many days")


class ExpiringPage(Answer):
    """Consents that end soon, the next one first."""

    items: tuple[Expiring, ...]
    next: str | None = None


class WhichReceipt(WhichConsent):
    """Which event of which consent."""

    event: int | None = Field(default=None, ge=1, le=10_000, description="its number; the last if left out")


class ReceiptKey(Answer):
    """With which key this platform signs receipts."""

    key_id: str
    public_key: str

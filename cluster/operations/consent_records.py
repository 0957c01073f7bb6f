# SPDX-License-Identifier: Apache-2.0
"""Consent records: questions, renewals, what ends soon, and receipts.

What names a person goes into the vault here, before anything is drafted or chained: changes, records and the
audit hold a salted hash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.operations.changes import draft_one
from cluster.operations.consent_shapes import (
    DAY_US,
    PERSONAL,
    AskConsent,
    ExpiringPage,
    ExpiringQuery,
    FilePage,
    FileView,
    Papered,
    ReceiptKey,
    RefuseConsent,
    RenewConsent,
    WhichConsent,
    WhichReceipt,
)
from cluster.operations.scope import check_own, check_visible, cut, tenant_scope
from cluster.operations.table import ANYONE, READERS, Nothing, Operation, Page
from model_core.packing.keys import load_or_create_key
from policy.consents.halts import Halt, halts
from policy.consents.receipts import SignedReceipt, consent_receipt, sign_receipt
from policy.consents.records import ConsentFile
from policy.facts.terms import ANY
from policy.records.changes import ChangeRecord
from policy.records.epochs import Publication
from policy.records.items import ConsentRenew
from policy.records.paper import AskedUse, ConsentPaper
from tenants.roles import PLATFORM_TENANT, Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk


def write_paper(
    desk: Desk, principal: Principal, request: Papered, asked: AskedUse | None = None
) -> ConsentPaper:
    """What of a request is kept for ever: what names people is put into the vault first."""
    fields = {
        name: getattr(request, name) for name in ConsentPaper.model_fields.keys() & request.model_fields_set
    }
    kept = {
        f"{name}_ref": desk.vault.keep(principal.tenant, name, text)
        for name in sorted(PERSONAL)
        if (text := getattr(request, name)) is not None
    }
    return ConsentPaper(**fields, **kept, asked=asked)


def ask(desk: Desk, principal: Principal, request: AskConsent) -> ConsentFile:
    """Opens a record with the question."""
    if request.expert_id != ANY:
        check_own(principal, desk.register.expert(request.expert_id).tenant, what="expert")
    if request.dataset_id is not None:
        check_own(principal, desk.datasets.get(request.dataset_id).tenant, what="dataset")
    asked = AskedUse(**request.model_dump(include=set(AskedUse.model_fields)))
    paper = write_paper(desk, principal, request, asked)
    return desk.consents.file(desk.consents.request(principal.tenant, paper, principal.id))


def list_requests(desk: Desk, principal: Principal, request: Page) -> FilePage:
    """Questions that wait for an answer."""
    rows = desk.consents.requests(tenant_scope(principal))
    items, after = cut(rows, request, lambda row: row.record_id)
    return FilePage(items=items, next=after)


def refuse(desk: Desk, principal: Principal, request: RefuseConsent) -> ConsentFile:
    """Writes down a no."""
    check_own(principal, desk.consents.file(request.record_id).tenant, what="consent")
    text = request.evidence
    ref = None if text is None else desk.vault.keep(principal.tenant, "evidence", text)
    desk.consents.refuse(request.record_id, principal.id, ref)
    return desk.consents.file(request.record_id)


def renew(desk: Desk, principal: Principal, request: RenewConsent) -> ChangeRecord:
    """Drafts a renewal."""
    file = desk.consents.file(request.consent_id)
    check_own(principal, file.tenant, what="consent")
    item = ConsentRenew(
        consent_id=file.words[-1].id if file.words else request.consent_id,
        valid_from_us=request.valid_from_us,
        valid_until_us=request.valid_until_us,
        paper=write_paper(desk, principal, request),
    )
    return draft_one(desk, principal, "Renew a consent", item)


def invalidate(desk: Desk, principal: Principal, request: WhichConsent) -> Publication:
    """Publishes that a consent was never good."""
    return desk.register.invalidate_consent(request.consent_id, principal)


def show_record(desk: Desk, principal: Principal, request: WhichConsent) -> FileView:
    """One record with its life."""
    file = _visible(desk, principal, request.consent_id)
    view = FileView(**file.model_dump())
    if principal.tenant != file.tenant or file.paper is None:
        return view
    texts = {name: desk.vault.read(getattr(file.paper, f"{name}_ref")) for name in PERSONAL}
    return view.model_copy(update=texts)


def list_expiring(desk: Desk, principal: Principal, request: ExpiringQuery) -> ExpiringPage:
    """What ends soon."""
    rows = desk.consents.expiring(request.within_days * DAY_US, tenant_scope(principal))
    items, after = cut(rows, request, lambda row: row.id)
    return ExpiringPage(items=items, next=after)


def receipt(desk: Desk, principal: Principal, request: WhichReceipt) -> SignedReceipt:
    """Signs a receipt for one event."""
    file = _visible(desk, principal, request.consent_id)
    number = request.event or len(file.events)
    halted: tuple[Halt, ...] = ()
    if 1 <= number <= len(file.events) and file.events[number - 1].epoch is not None:
        publication = desk.register.publication(file.events[number - 1].epoch or 0)
        halted = halts(desk.session, publication, int(desk.settings.lease_s * 1e6), desk.now_us)
    document = consent_receipt(
        file, request.event, halted, platform=PLATFORM_TENANT, issued_at_us=desk.now_us
    )
    return sign_receipt(document, load_or_create_key(desk.home.receipt_key))


def receipt_key(desk: Desk, principal: Principal, request: Nothing) -> ReceiptKey:
    """The public half of the key that signs receipts."""
    del principal, request
    key = load_or_create_key(desk.home.receipt_key)
    return ReceiptKey(key_id=key.key_id, public_key=key.public_key)


def _visible(desk: Desk, principal: Principal, consent_id: str) -> ConsentFile:
    file = desk.consents.file(consent_id)
    check_visible(principal, file.tenant, what="consent")
    return file


_OWNER = frozenset({Role.OWNER})
_CONSENT = {"consent_id": "con_0198f0c2a1b37c4e8d5f60718293a4b5"}
_EXPERT_ID = "exp_0198f0c2a1b37c4e8d5f60718293a4b5"

ROWS = (
    Operation(
        name="consents.request",
        method="POST",
        path="/consents/requests",
        roles=_OWNER,
        request=AskConsent,
        response=ConsentFile,
        run=ask,
        summary="Opens a consent record with the question you put to people; it permits nothing.",
        example={"expert_id": _EXPERT_ID, "purpose": "research", "subject_kind": "data_subjects"},
        unaudited=PERSONAL,
        isolated=True,
    ),
    Operation(
        name="consents.requests",
        method="GET",
        path="/consents/requests",
        roles=READERS,
        request=Page,
        response=FilePage,
        run=list_requests,
        summary="Lists your questions that wait for an answer.",
        isolated=True,
    ),
    Operation(
        name="consents.refuse",
        method="POST",
        path="/consents/requests/{record_id}/refuse",
        roles=_OWNER,
        request=RefuseConsent,
        response=ConsentFile,
        run=refuse,
        summary="Writes down that a question was answered with no.",
        example={"record_id": "crd_0198f0c2a1b37c4e8d5f60718293a4b5"},
        unaudited=PERSONAL,
        isolated=True,
    ),
    Operation(
        name="consents.renew",
        method="POST",
        path="/consents/{consent_id}/renew",
        roles=_OWNER,
        request=RenewConsent,
        response=ChangeRecord,
        run=renew,
        summary="Drafts that a consent goes on for longer; somebody else approves it.",
        example={**_CONSENT, "valid_until_us": 1_830_000_000_000_000},
        unaudited=PERSONAL,
    ),
    Operation(
        name="consents.invalidate",
        method="POST",
        path="/consents/{consent_id}/invalidate",
        roles=frozenset({Role.COMPLIANCE}),
        request=WhichConsent,
        response=Publication,
        run=invalidate,
        summary="Ends a consent that was never good, alone and at once.",
        example=_CONSENT,
    ),
    Operation(
        name="consents.record",
        method="GET",
        path="/consents/{consent_id}/record",
        roles=READERS,
        request=WhichConsent,
        response=FileView,
        run=show_record,
        summary="Shows a consent record: what was said, on what basis, and all that happened to it.",
        example=_CONSENT,
        isolated=True,
    ),
    Operation(
        name="consents.expiring",
        method="GET",
        path="/consents/expiring",
        roles=READERS,
        request=ExpiringQuery,
        response=ExpiringPage,
        run=list_expiring,
        summary="Lists consents that end soon, so that they can be renewed in time.",
        isolated=True,
    ),
    Operation(
        name="consents.receipt",
        method="GET",
        path="/consents/{consent_id}/receipt",
        roles=READERS,
        request=WhichReceipt,
        response=SignedReceipt,
        run=receipt,
        summary="Signs a receipt for an event of a consent; after its end it says when each server stopped.",
        example=_CONSENT,
        isolated=True,
    ),
    Operation(
        name="receipts.key",
        method="GET",
        path="/receipts/key",
        roles=ANYONE,
        request=Nothing,
        response=ReceiptKey,
        run=receipt_key,
        summary="Shows the public key with which this platform signs receipts; keep it outside.",
    ),
)

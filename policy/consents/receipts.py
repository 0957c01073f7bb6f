# SPDX-License-Identifier: Apache-2.0
"""Receipts: what happened to a consent, or to what was erased, signed by the platform and checked offline.

A consent receipt has the sections of ISO/IEC TS 27560: header, processing, parties, events. It is made anew
whenever it is asked for, from facts that never change; only what servers said since is added. Whoever checks
one needs the platform's public key from elsewhere: the key in the file vouches for nothing. Reads no
database.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from model_core.errors import ProductError
from model_core.packing.canonical import canonical_bytes
from model_core.packing.keys import SigningKey, key_id_of, verify_signature
from policy.consents.halts import Halt
from policy.consents.records import ConsentFile
from policy.consents.status import is_valid, status_after
from policy.errors import NotFound, ReceiptInvalid
from policy.records.paper import SCHEMA_VERSION, ConsentPaper

CONSENT: Final = "consent-receipt"
ERASURE: Final = "erasure-record"
KINDS: Final = (CONSENT, ERASURE)
MAX_BYTES: Final = 4 << 20
_UNSTATED: Final = "not stated"


class SignedReceipt(BaseModel):
    """A document with the platform's signature over its canonical bytes."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    document: dict[str, Any]
    key_id: str
    public_key: str
    signature: str


class CheckedReceipt(BaseModel):
    """What checking a receipt found.

    Attributes:
        trusted: whether the key is one that the checker brought along; without one nothing shows whose it is.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: str
    id: str
    key_id: str
    trusted: bool
    sentence: str


def sign_receipt(document: Mapping[str, Any], key: SigningKey) -> SignedReceipt:
    """Signs a document; the same document gives the same bytes."""
    plain = json.loads(canonical_bytes(dict(document)))
    return SignedReceipt(
        document=plain,
        key_id=key.key_id,
        public_key=key.public_key,
        signature=key.sign(canonical_bytes(plain)),
    )


def check_receipt(data: bytes, trusted: Collection[str] = ()) -> CheckedReceipt:
    """Checks a receipt without any database.

    Args:
        data: the file as it was downloaded.
        trusted: public keys of the platform that the checker has from elsewhere; none checks the signature
            alone.

    Raises:
        ReceiptInvalid: it is no receipt, was changed, or is signed by none of the trusted keys.
    """
    receipt, kind, number, message = _read(data)
    if not verify_signature(receipt.public_key, message, receipt.signature):
        raise ReceiptInvalid(
            "The receipt is not what was signed; somebody changed it. Download it again.", key=receipt.key_id
        )
    known = receipt.public_key in trusted
    if trusted and not known:
        raise ReceiptInvalid(
            "The receipt is signed by another key than the platform's; do not rely on it.", key=receipt.key_id
        )
    told = "" if known else " Compare the key with the platform's, which you have from elsewhere."
    return CheckedReceipt(
        kind=kind,
        id=number,
        key_id=receipt.key_id,
        trusted=known,
        sentence=f"The receipt is what key {receipt.key_id} signed.{told}",
    )


def consent_receipt(
    file: ConsentFile, number: int | None, halted: Sequence[Halt], *, platform: str, issued_at_us: int
) -> dict[str, Any]:
    """The document of a receipt for one event of a consent record.

    Args:
        file: the record.
        number: which event; the last one with None.
        halted: what servers did about the epoch of the event, where it ended a use.
        platform: the platform's name.
        issued_at_us: when it is asked for.

    Raises:
        NotFound: the record has no such event.
    """
    number = len(file.events) if number is None else number
    if not 1 <= number <= len(file.events):
        raise NotFound("The consent record has no such event; read the record.", event=number)
    events = file.events[:number]
    status = status_after(event.event for event in events)
    ended = events[-1].event in {"withdrawn", "revoked", "invalidated"}
    return {
        "kind": CONSENT,
        "receipt_id": _receipt_id(file.record_id, number),
        "schema_version": SCHEMA_VERSION,
        "issued_at_us": issued_at_us,
        "header": _header(file),
        "processing": _processing(file),
        "parties": _parties(file, platform),
        "events": [event.model_dump(mode="json") for event in events],
        "status": status,
        "valid": is_valid(status),
        "stopped": _stopped(halted) if ended else None,
    }


def _read(data: bytes) -> tuple[SignedReceipt, str, str, bytes]:
    """The receipt with its kind, its id and the bytes that the signature covers."""
    no_receipt = ReceiptInvalid("The file holds no receipt; download it again.")
    if len(data) > MAX_BYTES:
        raise no_receipt
    try:
        receipt = SignedReceipt.model_validate_json(data)
        kind, number = str(receipt.document["kind"]), str(receipt.document["receipt_id"])
        message = canonical_bytes(receipt.document)
        known_as = key_id_of(receipt.public_key)
    except (ValueError, KeyError, ProductError) as error:
        raise no_receipt from error
    if kind not in KINDS or known_as != receipt.key_id:
        raise no_receipt
    return receipt, kind, number, message


def _receipt_id(record_id: str, number: int) -> str:
    return "rcp_" + hashlib.sha256(f"{record_id}/{number}".encode()).hexdigest()[:32]


def _header(file: ConsentFile) -> dict[str, Any]:
    paper = file.paper or ConsentPaper()
    return {
        "record_id": file.record_id,
        "schema_version": SCHEMA_VERSION,
        "subject": paper.subject_ref or f"tenant {file.tenant}",
        "subject_kind": paper.subject_kind if file.paper else "owner",
    }


def _processing(file: ConsentFile) -> dict[str, Any]:
    """What may be done with what, why, where and for how long."""
    paper, notice = file.paper, file.notice
    told = {} if notice is None else notice.purposes
    return {
        "uses": [
            {
                **word.model_dump(mode="json", exclude={"tenant", "state"}),
                "purpose_in_plain_words": told.get(word.purpose, _UNSTATED),
            }
            for word in file.words
        ],
        "legal_basis": _UNSTATED if paper is None else paper.legal_basis,
        "jurisdiction": (paper.jurisdiction if paper else "") or _UNSTATED,
        "data_categories": list(paper.data_categories) if paper else [],
        "storage_location": (paper.storage_location if paper else "") or _UNSTATED,
        "retention": (paper.retention if paper else "") or _UNSTATED,
        "withdrawal_method": (paper or ConsentPaper()).withdrawal_method,
        "notice": None
        if notice is None
        else {"digest": notice.id, "language": notice.language, "version": notice.version},
    }


def _parties(file: ConsentFile, platform: str) -> list[dict[str, str]]:
    controller = (file.paper.controller if file.paper else "") or file.tenant
    recipients = sorted({word.recipient for word in file.words})
    return [
        {"role": "owner", "id": file.tenant},
        {"role": "controller", "id": controller},
        {"role": "platform", "id": platform},
        *({"role": "recipient", "id": one} for one in recipients),
    ]


def _stopped(halted: Sequence[Halt]) -> dict[str, Any]:
    """When the use had ended on every server, once that is known of all."""
    times = [halt.by_us for halt in halted]
    known = [at_us for at_us in times if at_us is not None]
    return {
        "servers": [halt.model_dump(mode="json") for halt in halted],
        "everywhere_by_us": max(known, default=None) if len(known) == len(times) else None,
    }

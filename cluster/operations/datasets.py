# SPDX-License-Identifier: Apache-2.0
"""Datasets: received as JSON lines, kept in the tenant's own folder, described by a card of counts.

Nothing here hands out documents: not to the owner's own key, and not to the platform's staff.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from cluster.operations.intake import JSON_LINES, inspect_documents
from cluster.operations.scope import check_visible, cut, tenant_scope
from cluster.operations.staging import documents_path, staged_path
from cluster.operations.table import READERS, Answer, Operation, Page, Request, Upload, several
from model_core.packing.manifest import DataCard
from policy.cards.croissant import read_card
from policy.cards.drafts import ImportedCard, NotImported
from policy.cards.duo import Scope
from policy.deciding.license_expressions import parse
from policy.facts import vocabulary
from policy.records.items import ConsentGive, ForbidUse
from tenants.accounts.datasets import DatasetRecord
from tenants.roles import Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk

DiseaseId = Annotated[str, Field(min_length=1, max_length=100)]

DATE = r"\d{4}-\d{2}-\d{2}"


class ReceivedDocuments(Request):
    """The staged file and what the gateway found in it."""

    id: str = Field(max_length=60)
    documents: int = Field(ge=1)
    text_bytes: int = Field(ge=1)
    merkle_root: str = Field(max_length=71)
    stored_digest: str = Field(max_length=71)
    size_bytes: int = Field(ge=1)


class NewDataset(Request):
    """What the owner says about the documents; counts and digests are taken from the file itself."""

    upload: ReceivedDocuments = Field(description="the body of the request")
    name: str = Field(max_length=63, description="unique among your datasets")
    license: str = Field(min_length=1, max_length=1000, description="SPDX expression, e.g. CC-BY-4.0")
    description: str = Field(default="", max_length=10_000)
    languages: Annotated[tuple[str, ...], BeforeValidator(several)] = Field(default=(), max_length=100)
    collected_from: str | None = Field(default=None, pattern=f"^{DATE}$", description="YYYY-MM-DD")
    collected_to: str | None = Field(default=None, pattern=f"^{DATE}$", description="YYYY-MM-DD")


class DatasetId(Request):
    """Which dataset."""

    dataset_id: str = Field(max_length=60)


class CardToImport(Request):
    """Terms that somebody else wrote, and what drafts of them are to be about."""

    document: dict[str, Any] = Field(
        description='a Croissant card, an ODRL policy, or {"duo": [codes]}, as JSON'
    )
    expert_id: str = Field(
        default="*", max_length=60, description="one of your experts, or * for all of them"
    )
    dataset_id: str | None = Field(default=None, max_length=60, description="draft consents for this dataset")
    recipient: str = Field(default="*", max_length=63, description="the tenant that drafts are for")
    region: str = Field(default="*", max_length=100, description="where it is used")
    diseases: Annotated[tuple[DiseaseId, ...], BeforeValidator(several)] = Field(
        default=(), max_length=20, description="MONDO ids that go with a disease-specific permission"
    )
    until_us: int | None = Field(
        default=None, ge=0, lt=2**53, description="the end that goes with a time limit"
    )


class CardImport(Answer):
    """What a card says, as drafts. Nothing is kept, and nothing is in force: propose what you agree with.

    Attributes:
        kind: croissant, odrl or duo.
        card: facts about the data, for uploading it.
        license: SPDX expression; None where the card names none that is known.
        items: edits for ``changes.propose``.
        forbids: prohibitions for ``consents.forbid``.
        conditions: duties that belong into the license that compliance reviews.
        not_imported: what no draft expresses, with the reason.
        notes: where a draft permits less, or forbids more, than the card.
    """

    kind: str
    card: ImportedCard
    license: str | None
    items: tuple[ConsentGive, ...]
    forbids: tuple[ForbidUse, ...]
    conditions: tuple[str, ...]
    not_imported: tuple[NotImported, ...]
    notes: tuple[str, ...]


class DatasetPage(Answer):
    """Datasets by tenant and name."""

    items: tuple[DatasetRecord, ...]
    next: str | None = None


def upload(desk: Desk, principal: Principal, request: NewDataset) -> DatasetRecord:
    """Keeps a received file in the tenant's folder and registers it."""
    parse(request.license)
    card = DataCard(
        documents=request.upload.documents,
        text_bytes=request.upload.text_bytes,
        languages=request.languages,
        collected_from=request.collected_from,
        collected_to=request.collected_to,
        license=request.license,
        merkle_root=request.upload.merkle_root,
        description=request.description,
    )
    received = request.upload
    record = desk.datasets.add(
        principal.tenant, request.name, card, received.stored_digest, received.size_bytes
    )
    staged = staged_path(desk.home.uploads, received.id)
    _keep(staged, documents_path(desk.home, principal.tenant, received.stored_digest), desk)
    return record


def listed(desk: Desk, principal: Principal, request: Page) -> DatasetPage:
    """Cards of one's own datasets; the platform's staff sees all cards."""
    rows = desk.datasets.list(tenant_scope(principal))
    items, after = cut(rows, request, lambda row: row.id)
    return DatasetPage(items=items, next=after)


def show(desk: Desk, principal: Principal, request: DatasetId) -> DatasetRecord:
    """One card."""
    record = desk.datasets.get(request.dataset_id)
    check_visible(principal, record.tenant, what="dataset")
    return record


def import_card(desk: Desk, principal: Principal, request: CardToImport) -> CardImport:
    """Reads terms into drafts."""
    del desk, principal
    vocabulary.vocabulary().check_words(region=request.region)
    scope = Scope.model_validate(request.model_dump(exclude={"document"}))
    found = read_card(request.document, scope)
    return CardImport(
        kind=found.kind,
        card=found.card,
        license=found.license,
        items=found.drafts.consents,
        forbids=found.drafts.forbids,
        conditions=found.drafts.conditions,
        not_imported=found.drafts.not_imported,
        notes=found.drafts.notes,
    )


def _keep(staged: Path, kept: Path, desk: Desk) -> None:
    """Links the staged file under its digest: it is there whole or not at all, and never copied."""
    desk.home.make_folder(kept.parent)
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):  # the same documents were kept before
        os.link(staged, kept)
    folder = os.open(kept.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


ROWS = (
    Operation(
        name="datasets.upload",
        method="POST",
        path="/datasets",
        roles=frozenset({Role.OWNER}),
        request=NewDataset,
        response=DatasetRecord,
        run=upload,
        summary='Registers documents: the body is JSON lines of {"id", "text"}.',
        example={"name": "notes-2025", "license": "CC-BY-4.0", "languages": ["en"]},
        upload=Upload(media_type=JSON_LINES, inspect=inspect_documents),
        unaudited=frozenset({"description"}),
        isolated=True,
    ),
    Operation(
        name="datasets.import_card",
        method="POST",
        path="/datasets/cards",
        roles=frozenset({Role.OWNER, Role.COMPLIANCE}),
        request=CardToImport,
        response=CardImport,
        run=import_card,
        summary="Reads Croissant, ODRL or DUO terms into drafts that you may propose; nothing is kept.",
        reads=True,
        example={"document": {"duo": ["GRU", "NCU"]}},
    ),
    Operation(
        name="datasets.list",
        method="GET",
        path="/datasets",
        roles=READERS,
        request=Page,
        response=DatasetPage,
        run=listed,
        summary="Lists the cards of your datasets.",
        isolated=True,
    ),
    Operation(
        name="datasets.show",
        method="GET",
        path="/datasets/{dataset_id}",
        roles=READERS,
        request=DatasetId,
        response=DatasetRecord,
        run=show,
        summary="Shows the card of a dataset.",
        example={"dataset_id": "dat_0198f0c2a1b37c4e8d5f60718293a4b5"},
        isolated=True,
    ),
)

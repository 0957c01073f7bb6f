# SPDX-License-Identifier: Apache-2.0
"""Datasets: who has which, described by a card. The documents themselves are never seen from here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes, check_digest
from model_core.packing.ids import check_name, new_id
from model_core.packing.manifest import DataCard
from tenants.accounts.tables import DatasetRow, TenantRow
from tenants.errors import NameTaken, UnknownObject


class DatasetRecord(BaseModel):
    """A dataset as its owner sees it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    tenant: str
    name: str
    license: str
    card: DataCard
    stored_digest: str
    size_bytes: int
    created_at_us: int


# Named here because inside the class ``list`` is the method.
Records = list[DatasetRecord]


class Datasets:
    """The dataset room, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def add(
        self, tenant: str, name: str, card: DataCard, stored_digest: str, size_bytes: int
    ) -> DatasetRecord:
        """Registers a stored dataset. Adding the very same one again returns the first.

        Args:
            tenant: the owner's slug.
            name: unique within the tenant.
            card: counts and dates, never text.
            stored_digest: of the bytes as stored in the tenant's own folder.
            size_bytes: of the same.

        Raises:
            UnknownObject: no such tenant.
            NameTaken: the tenant has another dataset of this name.
        """
        check_name(name, "dataset")
        check_digest(stored_digest, "stored digest")
        if self._session.get(TenantRow, tenant) is None:
            raise UnknownObject(
                "There is no such tenant; list the tenants to see which there are.", slug=tenant
            )
        document = canonical_bytes(card.model_dump(mode="json")).decode()
        query = select(DatasetRow).where(DatasetRow.tenant == tenant, DatasetRow.name == name)
        row = self._session.scalars(query).one_or_none()
        if row is not None:
            if row.stored_digest == stored_digest and row.card == document:
                return _dataset(row)
            raise NameTaken(
                f"You have a dataset called {name} with other content; choose another name.", name=name
            )
        row = DatasetRow(
            id=new_id("dat"),
            tenant=tenant,
            name=name,
            card=document,
            license=card.license,
            stored_digest=stored_digest,
            size_bytes=size_bytes,
            created_at_us=self._now_us,
        )
        self._session.add(row)
        self._session.flush()
        return _dataset(row)

    def get(self, dataset_id: str) -> DatasetRecord:
        """One dataset.

        Raises:
            UnknownObject: there is none with this id.
        """
        row = self._session.get(DatasetRow, dataset_id)
        if row is None:
            raise UnknownObject("There is no such dataset; list the datasets.", dataset_id=dataset_id)
        return _dataset(row)

    def list(self, tenant: str | None = None) -> Records:
        """Datasets by tenant and name; of one tenant, or of all with None."""
        query = select(DatasetRow).order_by(DatasetRow.tenant, DatasetRow.name)
        if tenant is not None:
            query = query.where(DatasetRow.tenant == tenant)
        return [_dataset(row) for row in self._session.scalars(query)]


def _dataset(row: DatasetRow) -> DatasetRecord:
    return DatasetRecord(
        id=row.id,
        tenant=row.tenant,
        name=row.name,
        license=row.license,
        card=DataCard.model_validate_json(row.card),
        stored_digest=row.stored_digest,
        size_bytes=row.size_bytes,
        created_at_us=row.created_at_us,
    )

# SPDX-License-Identifier: Apache-2.0
"""Assets of the register: bases and expert versions, with their lineage. Not who may use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes, check_digest
from model_core.packing.ids import check_name, new_id
from model_core.packing.manifest import BaseManifest, ExpertManifest
from policy.epochs.reading import card_license, columns_for, latest_listings
from policy.errors import AssetConflict
from policy.guards.authority import unknown
from policy.records.assets import BaseRecord, ExpertRecord
from policy.tables import BaseRow, ExpertDatasetRow, ExpertRow
from tenants.accounts.database import lock_for_writing
from tenants.accounts.tables import DatasetRow, TenantRow

# More ids than this are not worth naming in a query.
_FEW: Final = 500


class Assets:
    """The asset room, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def add_base(self, manifest: BaseManifest, digest: str) -> BaseRecord:
        """Registers a base under its digest. Doing so again changes nothing.

        Raises:
            AssetConflict: the digest is registered with another manifest.
        """
        check_digest(digest, "base digest")
        document = canonical_bytes(manifest.model_dump(mode="json")).decode()
        row = self._session.get(BaseRow, digest)
        if row is None:
            row = BaseRow(
                base_digest=digest,
                name=manifest.name,
                license=manifest.license,
                status="active",
                manifest=document,
                added_at_us=self._now_us,
            )
            self._session.add(row)
            self._session.flush()
        elif BaseManifest.model_validate_json(row.manifest) != manifest:  # fields added since have defaults
            raise AssetConflict("This digest is registered with another manifest.", base_digest=digest)
        return _base(row)

    def list_bases(self) -> list[BaseRecord]:
        """Every base, oldest first."""
        query = select(BaseRow).order_by(BaseRow.added_at_us, BaseRow.base_digest)
        return [_base(row) for row in self._session.scalars(query)]

    def base(self, digest: str) -> BaseRecord:
        """One base.

        Raises:
            NotFound: no base has this digest.
        """
        row = self._session.get(BaseRow, digest)
        if row is None:
            raise unknown("base", digest)
        return _base(row)

    def admit_expert(
        self,
        manifest: ExpertManifest,
        bundle_digest: str,
        dataset_ids: Sequence[str],
        owner_tenant: str,
        job_id: str | None = None,
    ) -> ExpertRecord:
        """Registers a sealed bundle as the next version of its owner's expert of that name.

        It may not be used by anyone until it is listed, consented to and granted. Admitting the same bundle
        again returns the first version.

        Raises:
            NotFound: the base or a dataset does not exist.
            AssetConflict: the manifest names another owner, or the bundle is admitted for somebody else.
        """
        check_digest(bundle_digest, "bundle digest")
        check_name(manifest.name, "expert")
        lock_for_writing(self._session, f"expert:{owner_tenant}:{manifest.name}")
        known = self._session.scalar(select(ExpertRow).where(ExpertRow.bundle_digest == bundle_digest))
        if manifest.tenant != owner_tenant or (known is not None and known.tenant != owner_tenant):
            raise AssetConflict("The bundle belongs to another tenant.", bundle_digest=bundle_digest)
        if known is not None:
            return self.expert(known.expert_id)
        if self._session.get(TenantRow, owner_tenant) is None:
            raise unknown("tenant", owner_tenant)
        self.base(manifest.base_digest)
        for dataset_id in dataset_ids:
            if self._session.get(DatasetRow, dataset_id) is None:
                raise unknown("dataset", dataset_id)
        latest = select(func.max(ExpertRow.version)).where(
            ExpertRow.tenant == owner_tenant, ExpertRow.name == manifest.name
        )
        row = ExpertRow(
            expert_id=new_id("exp"),
            tenant=owner_tenant,
            name=manifest.name,
            version=(self._session.scalar(latest) or 0) + 1,
            bundle_digest=bundle_digest,
            base_digest=manifest.base_digest,
            manifest=canonical_bytes(manifest.model_dump(mode="json")).decode(),
            job_id=job_id,
            state="sealed",
            admitted_at_us=self._now_us,
        )
        self._session.add(row)
        self._session.flush()
        self._session.add_all(
            ExpertDatasetRow(expert_id=row.expert_id, dataset_id=dataset_id)
            for dataset_id in sorted(set(dataset_ids))
        )
        self._session.flush()
        return self.expert(row.expert_id)

    def experts(self, tenant: str | None = None) -> list[ExpertRecord]:
        """Expert versions by owner, name and version; of one tenant, or of all with None."""
        query = select(ExpertRow).order_by(ExpertRow.tenant, ExpertRow.name, ExpertRow.version)
        if tenant is not None:
            query = query.where(ExpertRow.tenant == tenant)
        return self._experts(list(self._session.scalars(query)))

    def expert(self, expert_id: str) -> ExpertRecord:
        """One expert version.

        Raises:
            NotFound: no expert has this id.
        """
        return self._experts([self._expert_row(expert_id)])[0]

    def _expert_row(self, expert_id: str) -> ExpertRow:
        row = self._session.get(ExpertRow, expert_id)
        if row is None:
            raise unknown("expert", expert_id)
        return row

    def _experts(self, rows: Sequence[ExpertRow]) -> list[ExpertRecord]:
        links = select(ExpertDatasetRow).order_by(ExpertDatasetRow.dataset_id)
        ids = None if len(rows) > _FEW else [row.expert_id for row in rows]
        if ids is not None:
            links = links.where(ExpertDatasetRow.expert_id.in_(ids))
        listings = latest_listings(self._session, ids)
        lineage: dict[str, list[str]] = {}
        for link in self._session.scalars(links):
            lineage.setdefault(link.expert_id, []).append(link.dataset_id)
        records = []
        for row in rows:
            listing = listings.get(row.expert_id)
            records.append(
                ExpertRecord.model_validate(
                    {
                        **columns_for(ExpertRecord, row),
                        "manifest": ExpertManifest.model_validate_json(row.manifest),
                        "license": listing.license if listing else card_license(row),
                        "price_micro_per_1k_tokens": listing.price_micro_per_1k_tokens if listing else 0,
                        "dataset_ids": tuple(lineage.get(row.expert_id, ())),
                    }
                )
            )
        return records


def _base(row: BaseRow) -> BaseRecord:
    manifest = BaseManifest.model_validate_json(row.manifest)
    return BaseRecord.model_validate({**columns_for(BaseRecord, row), "manifest": manifest})

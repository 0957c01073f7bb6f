# SPDX-License-Identifier: Apache-2.0
"""Publishes epochs: freezes the facts of the register into a snapshot, once and for ever.

A publication that only narrows keeps, for every deployment, the last published members that are still
permitted and adds none; one that follows a reviewed change composes anew. Knows nothing of who may publish.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, TypeVar

from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from policy import vocabulary
from policy.audit import Audit
from policy.errors import MalformedSnapshot, NotFound
from policy.licenses import shipped_licenses
from policy.records import Publication
from policy.remembered import remembered
from policy.snapshot import (
    BaseFact,
    ConsentFact,
    DatasetFact,
    DeploymentFact,
    ExpertFact,
    GrantFact,
    LicenseFact,
    RuleFact,
    Snapshot,
    TenantFact,
)
from policy.standing import Standing, place_of
from policy.tables import (
    BaseRow,
    ConsentRow,
    DeploymentRow,
    ExpertDatasetRow,
    ExpertRow,
    GrantRow,
    LicenseRow,
    ListingRow,
    PublicationRow,
    RuleRow,
    SnapshotRow,
)
from tenants.accounts.database import lock_for_writing
from tenants.accounts.schema import Base
from tenants.accounts.tables import DatasetRow, TenantRow

PLATFORM_ACTOR: Final = "platform"

_Fact = TypeVar("_Fact", bound=BaseModel)


class Publisher:
    """Reads and writes epochs, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def lock(self) -> int:
        """Makes this unit of work the only one that publishes, and returns the epoch it would publish.

        Taken before anything is read that the publication rests on.
        """
        lock_for_writing(self._session, "register")
        return self.current_epoch() + 1

    def current_epoch(self) -> int:
        """The number of the last published epoch; 0 before the first."""
        return self._session.scalar(select(func.max(PublicationRow.epoch))) or 0

    def publication(self, epoch: int) -> Publication:
        """One epoch.

        Raises:
            NotFound: it was never published.
        """
        row = self._session.get(PublicationRow, epoch)
        if row is None:
            raise NotFound(f"Epoch {epoch} was never published; ask for the current one.", epoch=epoch)
        return to_fact(Publication, row)

    def publications(self, after: int = 0, limit: int = 100) -> list[Publication]:
        """Epochs after a number, oldest first."""
        query = select(PublicationRow).where(PublicationRow.epoch > after)
        rows = self._session.scalars(query.order_by(PublicationRow.epoch).limit(limit))
        return [to_fact(Publication, row) for row in rows]

    def snapshot(self, epoch: int | None = None) -> Snapshot:
        """The facts of an epoch, checked against its published digest; of the current one with None.

        Raises:
            NotFound: the epoch was never published.
            SnapshotMismatch: the stored bytes are not the published ones.
        """
        number = self.current_epoch() if epoch is None else epoch
        if number == 0 and epoch is None:
            return self._read_facts(0, self._now_us, {})
        stored = self._session.get(SnapshotRow, number)
        return _parsed(self.publication(number).snapshot_digest, b"" if stored is None else stored.document)

    def standing(self) -> Standing:
        """The current epoch with what its deployments run; read once by this process, then kept.

        Raises:
            SnapshotMismatch: the stored bytes are not the published ones.
        """
        query = select(PublicationRow.epoch, PublicationRow.snapshot_digest)
        newest = self._session.execute(query.order_by(PublicationRow.epoch.desc()).limit(1)).first()
        if newest is None:
            return Standing(self.snapshot())
        return self._kept(*newest)

    def known(self, epoch: int) -> Snapshot:
        """The facts of an epoch, not read again where this process has read or made them.

        Raises:
            NotFound: the epoch was never published.
            SnapshotMismatch: the stored bytes are not the published ones.
        """
        return self._kept(epoch, self.publication(epoch).snapshot_digest).snapshot

    def _kept(self, epoch: int, digest: str) -> Standing:
        place = place_of(digest)
        if not place:
            place.append(Standing(self.snapshot(epoch)))
        return place[0]

    def draft(self, *, widens: bool) -> Snapshot:
        """The snapshot that would be published now from the facts as they are in this unit of work."""
        epoch, at_us = self.current_epoch() + 1, self._now_us
        last: dict[str, tuple[str, ...] | None] = {}
        if epoch > 1:
            before = self.known(epoch - 1)
            # A clock that was set back must never hinder a withdrawal; the published time just stands still.
            at_us = max(at_us, before.published_at_us)
            if not widens:
                last = {fact.name: fact.members or () for fact in before.deployments}
        return _with_members(self._read_facts(epoch, at_us, last), last, widens=widens)

    def publish(
        self,
        *,
        reason: str,
        subject: str,
        principal_id: str | None,
        change_id: str | None = None,
        widens: bool = False,
    ) -> Publication:
        """Publishes the facts as they are in this unit of work as the next epoch, and chains the act."""
        snapshot = self.draft(widens=widens)
        place_of(snapshot.digest).append(Standing(snapshot))
        row = PublicationRow(
            epoch=snapshot.epoch,
            at_us=snapshot.published_at_us,
            snapshot_digest=snapshot.digest,
            reason=reason,
            subject=subject,
            principal_id=principal_id,
            change_id=change_id,
        )
        self._session.add(row)
        self._session.flush()
        self._session.add(SnapshotRow(epoch=snapshot.epoch, document=zlib.compress(snapshot.to_json(), 6)))
        self._session.flush()
        Audit(self._session, self._now_us).append(
            principal_id or PLATFORM_ACTOR,
            "epoch.publish",
            f"epoch:{snapshot.epoch}",
            {
                "snapshot_digest": snapshot.digest,
                "reason": reason,
                "subject": subject,
                "change_id": change_id,
            },
        )
        return to_fact(Publication, row)

    def _read_facts(self, epoch: int, at_us: int, members: Mapping[str, Any]) -> Snapshot:
        live_deployments = select(DeploymentRow).where(DeploymentRow.state == "live")
        live_rules = select(RuleRow).where(RuleRow.state == "live")
        rows = self._session.scalars
        return Snapshot(
            epoch=epoch,
            published_at_us=at_us,
            vocabulary_version=vocabulary.CURRENT_VERSION,
            tenants=tuple(to_fact(TenantFact, row) for row in rows(select(TenantRow))),
            bases=tuple(to_fact(BaseFact, row) for row in rows(select(BaseRow))),
            licenses=tuple(read_licenses(self._session).values()),
            experts=self._experts(),
            consents=self._words(ConsentFact, ConsentRow),
            grants=self._words(GrantFact, GrantRow),
            rules=tuple(to_fact(RuleFact, row) for row in rows(live_rules)),
            deployments=tuple(_deployment(row, members.get(row.name)) for row in rows(live_deployments)),
        )

    def _words(self, kind: type[_Fact], table: type[Base]) -> tuple[_Fact, ...]:
        """Consents or grants: the facts that only ever become more."""
        names = tuple(name for name in kind.model_fields if name in table.__table__.columns)
        query = select(*(table.__table__.columns[name] for name in names))
        return tuple(_word(kind, names, tuple(row)) for row in self._session.execute(query))

    def _experts(self) -> tuple[ExpertFact, ...]:
        lineage: dict[str, list[tuple[str, str, str]]] = {}
        query = select(ExpertDatasetRow.expert_id, DatasetRow.id, DatasetRow.tenant, DatasetRow.license)
        joined = query.join(DatasetRow, DatasetRow.id == ExpertDatasetRow.dataset_id)
        for expert_id, dataset_id, tenant, license_ in self._session.execute(joined):
            lineage.setdefault(expert_id, []).append((dataset_id, tenant, license_))
        listings = latest_listings(self._session)
        facts = []
        for row in self._session.scalars(select(ExpertRow)):
            listing = listings.get(row.expert_id)
            facts.append(
                ExpertFact(
                    bundle_digest=row.bundle_digest,
                    expert_id=row.expert_id,
                    name=row.name,
                    tenant=row.tenant,
                    base_digest=row.base_digest,
                    license=listing.license if listing else card_license(row),
                    datasets=tuple(
                        DatasetFact(
                            id=dataset_id,
                            tenant=tenant,
                            license=license_,
                            consent="with_expert" if tenant == row.tenant else "separate",
                        )
                        for dataset_id, tenant, license_ in lineage.get(row.expert_id, [])
                    ),
                    state=row.state,
                    price_micro_per_1k_tokens=listing.price_micro_per_1k_tokens if listing else 0,
                )
            )
        return tuple(facts)


@lru_cache(maxsize=16384)
def _word(kind: type[_Fact], names: tuple[str, ...], values: tuple[Any, ...]) -> _Fact:
    return kind.model_validate(dict(zip(names, values, strict=True)))


def to_fact(kind: type[_Fact], row: Any) -> _Fact:
    """Copies the columns of a row that a document has fields for."""
    return kind.model_validate(columns_for(kind, row))


def columns_for(kind: type[BaseModel], row: Any) -> dict[str, Any]:
    """The columns of a row that a document has fields for."""
    return {name: getattr(row, name) for name in kind.model_fields if name in row.__table__.columns}


def latest_listings(session: Session) -> dict[str, ListingRow]:
    """The listing that counts now, by expert id."""
    # Later epochs overwrite earlier ones.
    return {row.expert_id: row for row in session.scalars(select(ListingRow).order_by(ListingRow.epoch))}


def read_licenses(session: Session) -> dict[str, LicenseFact]:
    """Reviewed licenses by lower-case key: the shipped table, overridden by the register's own versions."""
    facts = {fact.key.lower(): fact for fact in shipped_licenses()}
    for row in session.scalars(select(LicenseRow).order_by(LicenseRow.version)):
        facts[row.key.lower()] = LicenseFact.model_validate_json(row.facets)
    return facts


def card_license(row: ExpertRow) -> str:
    """The license of an expert's data card, which stands until a listing names another."""
    return str(json.loads(row.manifest)["data_card"]["license"])


def _deployment(row: DeploymentRow, members: tuple[str, ...] | None) -> DeploymentFact:
    return DeploymentFact.model_validate({**json.loads(row.document), "members": members})


def _with_members(
    snapshot: Snapshot, last: Mapping[str, tuple[str, ...] | None], *, widens: bool
) -> Snapshot:
    """Composes every deployment and writes its members into the facts."""
    at_us = snapshot.published_at_us
    facts = []
    for fact in snapshot.deployments:
        composed = remembered().compose(snapshot, fact.name, at_us)
        members = {member.bundle_digest for member in composed.members}
        if not widens:
            # compose() promises this too; here it is the register's own word (an epoch that only narrows
            # may remove members of a live composition, never add).
            members &= set(last.get(fact.name) or ())
        facts.append(fact.model_copy(update={"members": tuple(sorted(members))}))
    return snapshot.model_copy(update={"deployments": tuple(facts)})


@lru_cache(maxsize=32)
def _parsed(digest: str, document: bytes) -> Snapshot:
    # Reading is the costly part and snapshots never change; the digest is checked with the first reading.
    try:
        data = zlib.decompress(document)
    except zlib.error as error:
        raise MalformedSnapshot(
            "The stored snapshot can not be unpacked; restore the database from a backup.", expected=digest
        ) from error
    return Snapshot.from_json(data, expect_digest=digest)

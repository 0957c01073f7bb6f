# SPDX-License-Identifier: Apache-2.0
"""The register: assets, the facts about their use, and every act upon them.

Narrowing (withdraw, suspend, revoke, forbid, remove) takes one person and is published at once, in the same
unit of work. Widening goes through ``propose`` and ``approve`` (see ``policy.changes``). Which of the two an
act is follows from its kind, never from a computation of its effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes, check_digest
from model_core.packing.ids import check_name, new_id
from model_core.packing.manifest import BaseManifest, ExpertManifest
from policy.authority import Authority, check_narrower, unknown
from policy.changes import Changes
from policy.composition import Composition, compose
from policy.decision_log import DecisionLog
from policy.edits import Edits
from policy.errors import AssetConflict, NotFound
from policy.items import ChangeItem, ForbidRule, ForbidUse
from policy.publication import Publisher, card_license, latest_listings, read_licenses, to_fact
from policy.questions import Question
from policy.records import (
    AcknowledgementRecord,
    BaseRecord,
    ChangeRecord,
    ConsentEvent,
    ConsentRecord,
    DecisionRecord,
    DeploymentRecord,
    ExpertRecord,
    Preview,
    Publication,
    ReplayResult,
    ServerRecord,
)
from policy.servers import Servers
from policy.snapshot import GrantFact, LicenseFact, RuleFact, Snapshot
from policy.tables import (
    BaseRow,
    ConsentEventRow,
    ConsentRow,
    DeploymentRow,
    ExpertDatasetRow,
    ExpertRow,
    GrantRow,
    PublicationRow,
    RuleRow,
)
from tenants.accounts.accounts import Accounts
from tenants.accounts.database import lock_for_writing
from tenants.accounts.tables import DatasetRow, TenantRow
from tenants.roles import Principal, Role


class Register:
    """The register, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us
        self._publisher = Publisher(session, now_us)
        self._changes = Changes(session, now_us)
        self._edits = Edits(session, now_us)
        self._servers = Servers(session, now_us)
        self._log = DecisionLog(session, now_us)

    # -- assets ------------------------------------------------------------------------------------------

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
        elif row.manifest != document:
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

    # -- narrowing: one person, at once ------------------------------------------------------------------

    def withdraw_consent(self, consent_id: str, principal: Principal) -> Publication:
        """Withdraws a consent. Withdrawing again returns the publication that did it.

        Raises:
            NotFound: no such consent, or another tenant's.
            NotAllowed: the principal is no owner.
        """
        self._publisher.lock()
        row = self._session.get(ConsentRow, consent_id)
        if row is None:
            raise unknown("consent", consent_id)
        check_narrower(principal, "consent", consent_id, row.tenant, Role.OWNER)
        if row.state == "withdrawn":
            return self._published_by("consent.withdraw", consent_id)
        row.state = "withdrawn"
        self._session.add(
            ConsentEventRow(
                consent_id=consent_id,
                n=1,
                event="withdrawn",
                at_us=self._now_us,
                epoch=self.current_epoch() + 1,
                principal_id=principal.id,
            )
        )
        return self._narrowed("consent.withdraw", consent_id, principal)

    def forbid_use(self, item: ForbidUse, principal: Principal) -> Publication:
        """Lets an owner forbid uses of its expert; stronger than every permit.

        Raises:
            NotFound: no such expert or dataset, or another tenant's.
            NotAllowed: the principal is no owner.
            UnknownTerm: a word is not in the vocabulary.
        """
        epoch = self._publisher.lock()
        Authority(self._session).check_owner(principal, item.expert_id, item.dataset_id)
        self._edits.check(item)
        consent_id = self._edits.add_consent(item, "forbid", principal.tenant, epoch, principal.id)
        return self._narrowed("consent.forbid", consent_id, principal)

    def suspend_expert(self, expert_id: str, principal: Principal) -> Publication:
        """Takes an expert out of every composition.

        Raises:
            NotFound: no such expert, or another tenant's.
            NotAllowed: the principal is no owner.
        """
        self._publisher.lock()
        row = self._expert_row(expert_id)
        check_narrower(principal, "expert", expert_id, row.tenant, Role.OWNER)
        if row.state != "erased":
            row.state = "suspended"
        return self._narrowed("expert.suspend", expert_id, principal)

    def revoke_grant(self, grant_id: str, principal: Principal) -> Publication:
        """Ends a consumer's access. Revoking again returns the publication that did it.

        Raises:
            NotFound: no such grant, or another tenant's.
            NotAllowed: the principal is no owner.
        """
        self._publisher.lock()
        row = self._session.get(GrantRow, grant_id)
        if row is None:
            raise unknown("grant", grant_id)
        check_narrower(principal, "grant", grant_id, row.tenant, Role.OWNER)
        if row.state == "revoked":
            return self._published_by("grant.revoke", grant_id)
        row.state = "revoked"
        return self._narrowed("grant.revoke", grant_id, principal)

    def add_forbid_rule(self, rule: ForbidRule, principal: Principal) -> Publication:
        """Lets compliance forbid uses; stronger than every permit.

        Raises:
            NotAllowed: the principal is not of compliance.
            UnknownTerm: a word is not in the vocabulary.
        """
        self._publisher.lock()
        Authority.check_compliance(principal)
        self._edits.check_rule(rule)
        rule_id = self._edits.add_rule(rule.model_dump(), "forbid")
        return self._narrowed("rule.forbid", rule_id, principal)

    def remove_permit_rule(self, rule_id: str, principal: Principal) -> Publication:
        """Takes back a permitting rule. A forbidding one is not taken back alone: that would widen.

        Raises:
            NotFound: no live permitting rule has this id.
            NotAllowed: the principal is not of compliance.
        """
        self._publisher.lock()
        Authority.check_compliance(principal)
        row = self._session.get(RuleRow, rule_id)
        if row is None or row.effect != "permit":
            raise unknown("permitting rule", rule_id)
        if row.state == "removed":
            return self._published_by("rule.remove", rule_id)
        row.state = "removed"
        return self._narrowed("rule.remove", rule_id, principal)

    def remove_deployment(self, name: str, principal: Principal) -> Publication:
        """Ends an endpoint. Removing again returns the publication that did it.

        Raises:
            NotFound: no such deployment, or another tenant's.
            NotAllowed: the principal is no developer of the tenant.
        """
        self._publisher.lock()
        row = self._session.get(DeploymentRow, name)
        if row is None:
            raise unknown("deployment", name)
        check_narrower(principal, "deployment", name, row.tenant, Role.DEVELOPER)
        if row.state == "removed":
            return self._published_by("deployment.remove", name)
        row.state = "removed"
        return self._narrowed("deployment.remove", name, principal)

    def suspend_tenant(self, slug: str, principal: Principal) -> Publication:
        """Stops a tenant's keys, its endpoints and the use of its experts.

        Raises:
            NotAllowed: the principal is neither of compliance nor an operator.
            UnknownObject: no such tenant.
        """
        self._publisher.lock()
        Authority.check_platform(principal)
        Accounts(self._session, self._now_us).suspend_tenant(slug)
        return self._narrowed("tenant.suspend", slug, principal)

    # -- widening: two people ----------------------------------------------------------------------------

    def propose(self, principal: Principal, title: str, items: Sequence[ChangeItem]) -> ChangeRecord:
        """Drafts a change; see ``Changes.propose``."""
        return self._changes.propose(principal, title, items)

    def preview(self, change_id: str) -> Preview:
        """Says what a change would do now; see ``Changes.preview``."""
        return self._changes.preview(change_id)

    def approve(self, change_id: str, digest: str, principal: Principal) -> Publication:
        """Publishes somebody else's change; see ``Changes.approve``."""
        return self._changes.approve(change_id, digest, principal)

    def reject(self, change_id: str, principal: Principal, comment: str) -> ChangeRecord:
        """Closes a change without effect; see ``Changes.reject``."""
        return self._changes.reject(change_id, principal, comment)

    def changes(self, state: str | None = None, tenant: str | None = None) -> list[ChangeRecord]:
        """Changes, newest first."""
        return self._changes.list(state, tenant)

    def change(self, change_id: str) -> ChangeRecord:
        """One change, with its preview while it is open."""
        return self._changes.get(change_id)

    # -- facts -------------------------------------------------------------------------------------------

    def consents(self, tenant: str | None = None) -> list[ConsentRecord]:
        """Owners' words with their history, oldest first; of one tenant, or of all with None."""
        query = select(ConsentRow).order_by(ConsentRow.id)
        if tenant is not None:
            query = query.where(ConsentRow.tenant == tenant)
        rows = list(self._session.scalars(query))
        events: dict[str, list[ConsentEvent]] = {row.id: [] for row in rows}
        history = select(ConsentEventRow).order_by(ConsentEventRow.consent_id, ConsentEventRow.n)
        for event in self._session.scalars(history.where(ConsentEventRow.consent_id.in_(events))):
            events[event.consent_id].append(to_fact(ConsentEvent, event))
        return [
            ConsentRecord.model_validate({**_columns(ConsentRecord, row), "events": tuple(events[row.id])})
            for row in rows
        ]

    def grants(self, tenant: str | None = None, consumer_tenant: str | None = None) -> list[GrantFact]:
        """Accesses given, oldest first; by a tenant, to a tenant, or all with None."""
        query = select(GrantRow).order_by(GrantRow.id)
        if tenant is not None:
            query = query.where(GrantRow.tenant == tenant)
        if consumer_tenant is not None:
            query = query.where(GrantRow.consumer_tenant == consumer_tenant)
        return [to_fact(GrantFact, row) for row in self._session.scalars(query)]

    def rules(self) -> list[RuleFact]:
        """The live rules, oldest first."""
        query = select(RuleRow).where(RuleRow.state == "live").order_by(RuleRow.id)
        return [to_fact(RuleFact, row) for row in self._session.scalars(query)]

    def licenses(self) -> list[LicenseFact]:
        """Reviewed licenses by key, in their present version."""
        facts = read_licenses(self._session)
        return [facts[key] for key in sorted(facts)]

    def deployments(self, tenant: str | None = None) -> list[DeploymentRecord]:
        """Published deployments with what they run now, by name; of one tenant, or of all with None."""
        snapshot = self.snapshot()
        names = [fact.name for fact in snapshot.deployments if tenant in {None, fact.tenant}]
        return [self.deployment(name) for name in names]

    def deployment(self, name: str) -> DeploymentRecord:
        """One published deployment with what it runs at this moment, and why.

        Raises:
            NotFound: no such deployment.
        """
        snapshot = self.snapshot()
        fact = snapshot.deployments_by_name.get(name)
        if fact is None:
            raise unknown("deployment", name)
        composition = compose(snapshot, Question(at_us=self._now_us, deployment=name))
        return DeploymentRecord(**fact.model_dump(), composition=composition)

    # -- epochs, servers, decisions ----------------------------------------------------------------------

    def current_epoch(self) -> int:
        """The last published epoch; 0 before the first."""
        return self._publisher.current_epoch()

    def snapshot(self, epoch: int | None = None) -> Snapshot:
        """The facts of an epoch; see ``Publisher.snapshot``."""
        return self._publisher.snapshot(epoch)

    def publications(self, after: int = 0, limit: int = 100) -> list[Publication]:
        """Epochs after a number, oldest first."""
        return self._publisher.publications(after, limit)

    def acknowledge(
        self, server_id: str, epoch: int, snapshot_digest: str, compositions: Mapping[str, str]
    ) -> AcknowledgementRecord:
        """Takes a server's word that it runs what an epoch permits; see ``Servers.acknowledge``."""
        return self._servers.acknowledge(server_id, epoch, snapshot_digest, compositions)

    def acknowledgements(self, epoch: int) -> list[AcknowledgementRecord]:
        """Which servers acknowledged an epoch."""
        return self._servers.acknowledgements(epoch)

    def servers(self) -> list[ServerRecord]:
        """Every server that ever acknowledged anything."""
        return self._servers.list()

    def record_decisions(self, composition: Composition, question: Question | None = None) -> str:
        """Logs an answer, once per epoch; see ``DecisionLog.record``."""
        return self._log.record(composition, question)

    def decisions(self, **filters: Any) -> list[DecisionRecord]:
        """Logged answers; filters: tenant, deployment, expert_id, epoch, limit."""
        return self._log.list(**filters)

    def decision(self, decision_id: str) -> DecisionRecord:
        """One logged answer."""
        return self._log.get(decision_id)

    def replay(self, decision_id: str) -> ReplayResult:
        """Asks the same question of the same snapshot again; see ``DecisionLog.replay``."""
        return self._log.replay(decision_id)

    # -- inside ------------------------------------------------------------------------------------------

    def _narrowed(self, reason: str, subject: str, principal: Principal) -> Publication:
        self._session.flush()
        return self._publisher.publish(reason=reason, subject=subject, principal_id=principal.id)

    def _published_by(self, reason: str, subject: str) -> Publication:
        query = select(PublicationRow).where(
            PublicationRow.reason == reason, PublicationRow.subject == subject
        )
        row = self._session.scalars(query.order_by(PublicationRow.epoch.desc()).limit(1)).one_or_none()
        if row is None:
            raise NotFound("The act has no publication.", reason=reason, subject=subject)
        return to_fact(Publication, row)

    def _expert_row(self, expert_id: str) -> ExpertRow:
        row = self._session.get(ExpertRow, expert_id)
        if row is None:
            raise unknown("expert", expert_id)
        return row

    def _experts(self, rows: Sequence[ExpertRow]) -> list[ExpertRecord]:
        listings = latest_listings(self._session)
        lineage: dict[str, list[str]] = {}
        for link in self._session.scalars(select(ExpertDatasetRow).order_by(ExpertDatasetRow.dataset_id)):
            lineage.setdefault(link.expert_id, []).append(link.dataset_id)
        records = []
        for row in rows:
            listing = listings.get(row.expert_id)
            records.append(
                ExpertRecord.model_validate(
                    {
                        **_columns(ExpertRecord, row),
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
    return BaseRecord.model_validate({**_columns(BaseRecord, row), "manifest": manifest})


def _columns(kind: Any, row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in kind.model_fields if name in row.__table__.columns}

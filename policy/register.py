# SPDX-License-Identifier: Apache-2.0
"""The register: assets, the facts about their use, and every act upon them.

Narrowing (withdraw, suspend, revoke, forbid, remove) takes one person and is published at once, in the same
unit of work. Widening goes through ``propose`` and ``approve`` (see ``policy.changing``). Which of the two an
act is follows from its kind, never from a computation of its effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from model_core.packing.manifest import BaseManifest, ExpertManifest
from policy.assets import Assets
from policy.changing.changes import Changes
from policy.changing.narrowing import Narrowing
from policy.consents.reading import ConsentReader
from policy.deciding.composition import Composition, compose
from policy.deciding.questions import Question
from policy.epochs.reading import columns_for, read_licenses, to_fact
from policy.facts.snapshot import GrantFact, LicenseFact, RuleFact, Snapshot
from policy.guards.authority import unknown
from policy.publishing.decision_log import DecisionLog
from policy.publishing.publication import Publisher
from policy.publishing.servers import Servers
from policy.records.assets import BaseRecord, DeploymentRecord, ExpertRecord
from policy.records.changes import ChangeRecord, Preview
from policy.records.consents import ConsentEvent, ConsentRecord
from policy.records.decisions import DecisionRecord, ReplayResult
from policy.records.epochs import AcknowledgementRecord, Publication, ServerRecord
from policy.records.items import ChangeItem, ForbidRule, ForbidUse
from policy.tables import (
    ConsentEventRow,
    ConsentRow,
    DeploymentRow,
    GrantRow,
    RuleRow,
)
from tenants.roles import Principal


class Register:
    """The register, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us
        self._publisher = Publisher(session, now_us)
        self._changes = Changes(session, now_us)
        self._assets = Assets(session, now_us)
        self._narrowing = Narrowing(session, now_us)
        self._servers = Servers(session, now_us)
        self._log = DecisionLog(session, now_us)

    # -- assets ------------------------------------------------------------------------------------------

    def add_base(self, manifest: BaseManifest, digest: str) -> BaseRecord:
        """Registers a base under its digest; see ``Assets.add_base``."""
        return self._assets.add_base(manifest, digest)

    def list_bases(self) -> list[BaseRecord]:
        """Every base, oldest first."""
        return self._assets.list_bases()

    def base(self, digest: str) -> BaseRecord:
        """One base."""
        return self._assets.base(digest)

    def admit_expert(
        self,
        manifest: ExpertManifest,
        bundle_digest: str,
        dataset_ids: Sequence[str],
        owner_tenant: str,
        job_id: str | None = None,
    ) -> ExpertRecord:
        """Registers a sealed bundle as an expert's next version; see ``Assets.admit_expert``."""
        return self._assets.admit_expert(manifest, bundle_digest, dataset_ids, owner_tenant, job_id)

    def experts(self, tenant: str | None = None) -> list[ExpertRecord]:
        """Expert versions; of one tenant, or of all with None."""
        return self._assets.experts(tenant)

    def expert(self, expert_id: str) -> ExpertRecord:
        """One expert version."""
        return self._assets.expert(expert_id)

    # -- narrowing: one person, at once ------------------------------------------------------------------

    def withdraw_consent(self, consent_id: str, principal: Principal) -> Publication:
        """Withdraws a consent; see ``Narrowing.withdraw_consent``."""
        return self._narrowing.withdraw_consent(consent_id, principal)

    def invalidate_consent(self, consent_id: str, principal: Principal) -> Publication:
        """Ends a consent that was never good; see ``Narrowing.invalidate_consent``."""
        return self._narrowing.invalidate_consent(consent_id, principal)

    def forbid_use(self, item: ForbidUse, principal: Principal) -> Publication:
        """Lets an owner forbid uses of its expert; see ``Narrowing.forbid_use``."""
        return self._narrowing.forbid_use(item, principal)

    def suspend_expert(self, expert_id: str, principal: Principal) -> Publication:
        """Takes an expert out of every composition; see ``Narrowing.suspend_expert``."""
        return self._narrowing.suspend_expert(expert_id, principal)

    def revoke_grant(self, grant_id: str, principal: Principal) -> Publication:
        """Ends a consumer's access; see ``Narrowing.revoke_grant``."""
        return self._narrowing.revoke_grant(grant_id, principal)

    def add_forbid_rule(self, rule: ForbidRule, principal: Principal) -> Publication:
        """Lets compliance forbid uses; see ``Narrowing.add_forbid_rule``."""
        return self._narrowing.add_forbid_rule(rule, principal)

    def remove_permit_rule(self, rule_id: str, principal: Principal) -> Publication:
        """Takes back a permitting rule; see ``Narrowing.remove_permit_rule``."""
        return self._narrowing.remove_permit_rule(rule_id, principal)

    def remove_deployment(
        self, name: str, principal: Principal, expected_version: int | None = None
    ) -> Publication:
        """Ends an endpoint; see ``Narrowing.remove_deployment``."""
        return self._narrowing.remove_deployment(name, principal, expected_version)

    def suspend_tenant(self, slug: str, principal: Principal) -> Publication:
        """Stops a tenant; see ``Narrowing.suspend_tenant``."""
        return self._narrowing.suspend_tenant(slug, principal)

    # -- widening: two people ----------------------------------------------------------------------------

    def propose(
        self,
        principal: Principal,
        title: str,
        items: Sequence[ChangeItem],
        effective_at_us: int | None = None,
    ) -> ChangeRecord:
        """Lays a change before its reviewers; see ``Changes.propose``."""
        return self._changes.propose(principal, title, items, effective_at_us)

    def preview(self, change_id: str) -> Preview:
        """Says what a change would do now; see ``Changes.preview``."""
        return self._changes.preview(change_id)

    def approve(self, change_id: str, digest: str, principal: Principal) -> Publication:
        """Publishes somebody else's change; see ``Changes.approve``."""
        return self._changes.approve(change_id, digest, principal)

    def schedule(self, change_id: str, digest: str, principal: Principal) -> ChangeRecord:
        """Approves somebody else's change for its moment; see ``Changes.schedule``."""
        return self._changes.schedule(change_id, digest, principal)

    def reject(self, change_id: str, principal: Principal, comment: str) -> ChangeRecord:
        """Closes a change without effect; see ``Changes.reject``."""
        return self._changes.reject(change_id, principal, comment)

    def changes(self, state: str | None = None, tenant: str | None = None) -> list[ChangeRecord]:
        """Changes, newest first."""
        return self._changes.list(state, tenant)

    def change(self, change_id: str, *, previewed: bool = True) -> ChangeRecord:
        """One change, with its preview while it is open."""
        return self._changes.get(change_id, previewed=previewed)

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
        standings = ConsentReader(self._session, self._now_us).standings(rows)
        return [
            ConsentRecord.model_validate(
                {
                    **columns_for(ConsentRecord, row),
                    "events": tuple(events[row.id]),
                    "record_id": standings[row.id][0],
                    "status": standings[row.id][1],
                }
            )
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
        snapshot = self._publisher.standing().snapshot
        names = [fact.name for fact in snapshot.deployments if tenant in {None, fact.tenant}]
        return [self.deployment(name) for name in names]

    def deployment(self, name: str) -> DeploymentRecord:
        """One published deployment with what it runs at this moment, and why.

        Raises:
            NotFound: no such deployment.
        """
        snapshot = self._publisher.standing().snapshot
        fact = snapshot.deployments_by_name.get(name)
        if fact is None:
            raise unknown("deployment", name)
        composition = compose(snapshot, Question(at_us=self._now_us, deployment=name))
        row = self._session.get(DeploymentRow, name)
        version = 0 if row is None else row.version
        return DeploymentRecord(**fact.model_dump(), composition=composition, version=version)

    # -- epochs, servers, decisions ----------------------------------------------------------------------

    def current_epoch(self) -> int:
        """The last published epoch; 0 before the first."""
        return self._publisher.current_epoch()

    def snapshot(self, epoch: int | None = None) -> Snapshot:
        """The facts of an epoch as they are stored (``Publisher.snapshot``); with None those in force."""
        return self._publisher.standing().snapshot if epoch is None else self._publisher.snapshot(epoch)

    def known(self, epoch: int) -> Snapshot:
        """The facts of an epoch, not read twice by one process; see ``Publisher.known``."""
        return self._publisher.known(epoch)

    def digest_of(self, epoch: int) -> str:
        """The digest of a published epoch's snapshot; see ``Publisher.publication``."""
        return self._publisher.publication(epoch).snapshot_digest

    def publication(self, epoch: int) -> Publication:
        """One epoch; see ``Publisher.publication``."""
        return self._publisher.publication(epoch)

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

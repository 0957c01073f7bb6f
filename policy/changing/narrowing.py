# SPDX-License-Identifier: Apache-2.0
"""Narrowing: one person, at once, published in the same unit of work.

Nothing here asks what an act would do to any deployment: the kind of act makes it a narrowing one.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from policy.changing.edits import Edits
from policy.consents.book import ConsentBook
from policy.consents.status import Event
from policy.epochs.reading import to_fact
from policy.errors import NotFound
from policy.guards.authority import Authority, check_narrower, unknown
from policy.guards.versions import check_version
from policy.publishing.decision_log import DecisionLog
from policy.publishing.publication import Publisher
from policy.records.epochs import Publication
from policy.records.items import ForbidRule, ForbidUse
from policy.tables import (
    ConsentRow,
    DeploymentRow,
    ExpertRow,
    GrantRow,
    PublicationRow,
    RuleRow,
)
from tenants.accounts.accounts import Accounts
from tenants.roles import Principal, Role


class Narrowing:
    """The acts that only ever take away, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us
        self._publisher = Publisher(session, now_us)
        self._edits = Edits(session, now_us)

    def withdraw_consent(self, consent_id: str, principal: Principal) -> Publication:
        """Withdraws a consent with all that renewed it. Again: returns the publication that ended it.

        Raises:
            NotFound: no such consent, or another tenant's.
            NotAllowed: the principal is no owner.
        """
        epoch = self._publisher.lock()
        row = self._session.get(ConsentRow, consent_id)
        if row is None:
            raise unknown("consent", consent_id)
        check_narrower(principal, "consent", consent_id, row.tenant, Role.OWNER)
        book = ConsentBook(self._session, self._now_us)
        ended_in = book.ended_in(row)
        if ended_in is not None:
            return self._publisher.publication(ended_in)
        # The owner's own word and that of the staff end the same; the record tells them apart.
        event: Event = "withdrawn" if principal.tenant == row.tenant else "revoked"
        book.end(row, event, principal.id, epoch)
        return self.publish("consent.withdraw", consent_id, principal)

    def invalidate_consent(self, consent_id: str, principal: Principal) -> Publication:
        """Lets compliance find that a consent was never good; it ends like a withdrawn one.

        Raises:
            NotFound: no such consent.
            NotAllowed: the principal is not of compliance.
        """
        epoch = self._publisher.lock()
        Authority.check_compliance(principal)
        row = self._session.get(ConsentRow, consent_id)
        if row is None or row.effect != "permit":
            raise unknown("consent", consent_id)
        ConsentBook(self._session, self._now_us).end(row, "invalidated", principal.id, epoch)
        return self.publish("consent.invalidate", consent_id, principal)

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
        return self.publish("consent.forbid", consent_id, principal)

    def suspend_expert(self, expert_id: str, principal: Principal) -> Publication:
        """Takes an expert out of every composition.

        Raises:
            NotFound: no such expert, or another tenant's.
            NotAllowed: the principal is no owner.
        """
        self._publisher.lock()
        row = self._session.get(ExpertRow, expert_id)
        if row is None:
            raise unknown("expert", expert_id)
        check_narrower(principal, "expert", expert_id, row.tenant, Role.OWNER)
        if row.state != "erased":
            row.state = "suspended"
        return self.publish("expert.suspend", expert_id, principal)

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
        return self.publish("grant.revoke", grant_id, principal)

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
        return self.publish("rule.forbid", rule_id, principal)

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
        return self.publish("rule.remove", rule_id, principal)

    def remove_deployment(
        self, name: str, principal: Principal, expected_version: int | None = None
    ) -> Publication:
        """Ends an endpoint. Removing again returns the publication that did it.

        Args:
            name: which endpoint.
            principal: who ends it.
            expected_version: the version that was read; None ends whichever there is.

        Raises:
            NotFound: no such deployment, or another tenant's.
            NotAllowed: the principal is no developer of the tenant.
            StaleVersion: the endpoint was put anew since it was read.
        """
        self._publisher.lock()
        row = self._session.get(DeploymentRow, name)
        if row is None:
            raise unknown("deployment", name)
        check_narrower(principal, "deployment", name, row.tenant, Role.DEVELOPER)
        if row.state == "removed":
            return self._published_by("deployment.remove", name)
        check_version(row.version, expected_version, name)
        row.state = "removed"
        return self.publish("deployment.remove", name, principal)

    def suspend_tenant(self, slug: str, principal: Principal) -> Publication:
        """Stops a tenant's keys, its endpoints and the use of its experts.

        Raises:
            NotAllowed: the principal is neither of compliance nor an operator.
            UnknownObject: no such tenant.
        """
        self._publisher.lock()
        Authority.check_platform(principal)
        Accounts(self._session, self._now_us).suspend_tenant(slug)
        return self.publish("tenant.suspend", slug, principal)

    def publish(self, reason: str, subject: str, principal: Principal) -> Publication:
        """Publishes what was narrowed in this unit of work, and logs what that decides."""
        self._session.flush()
        publication = self._publisher.publish(reason=reason, subject=subject, principal_id=principal.id)
        DecisionLog(self._session, self._now_us).record_standing(publication.epoch)
        return publication

    def _published_by(self, reason: str, subject: str) -> Publication:
        query = select(PublicationRow).where(
            PublicationRow.reason == reason, PublicationRow.subject == subject
        )
        row = self._session.scalars(query.order_by(PublicationRow.epoch.desc()).limit(1)).one_or_none()
        if row is None:
            raise NotFound("The act has no publication.", reason=reason, subject=subject)
        return to_fact(Publication, row)

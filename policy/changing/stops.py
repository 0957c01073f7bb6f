# SPDX-License-Identifier: Apache-2.0
"""The emergency stop: one person takes something out of use at once, a second one signs afterwards.

A stop only ever narrows; that follows from its kind, and nothing is computed for it. Compliance and operators
stop anything, owners and developers what is their own. Whoever else could have stopped it signs. A signature
that does not come shows as overdue and undoes nothing: what was stopped comes back by a reviewed change alone
(``expert.resume``, ``tenant.resume``, ``deployment.put``, ``license.put``, ``rule.lift``).
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from model_core.packing.ids import new_id
from policy.changing.edits import Edits
from policy.changing.narrowing import Narrowing
from policy.epochs.reading import columns_for, read_licenses
from policy.errors import AlreadySigned, NotAllowed, SelfApproval
from policy.guards.authority import Authority, check_narrower, unknown
from policy.publishing.publication import Publisher
from policy.records.changes import StopKind, StopRecord
from policy.records.epochs import Publication
from policy.records.items import ForbidRule
from policy.tables import DeploymentRow, ExpertRow, LicenseRow, RuleRow, StopRow
from tenants.accounts.database import lock_for_writing
from tenants.accounts.tables import TenantRow
from tenants.roles import Principal, Role

#: A stop by one person alone is for emergencies; within this time somebody else has looked at it.
SIGNATURE_WITHIN_US: Final = 24 * 3600 * 1_000_000

_NOTHING_ALLOWED: Final = {
    "hosted_use": False,
    "use_commercial": False,
    "derivatives": False,
    "distribution_weights": False,
}


class Stops:
    """The emergency brake, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us
        self._publisher = Publisher(session, now_us)
        self._narrowing = Narrowing(session, now_us)
        self._edits = Edits(session, now_us)

    def stop(self, principal: Principal, kind: StopKind, subject: str, reason: str) -> StopRecord:
        """Takes something out of use, in the same unit of work.

        Args:
            principal: who.
            kind: what is stopped.
            subject: its id, name, slug or key, or the purpose.
            reason: why, for people.

        Raises:
            NotFound: there is no such thing, or it is another tenant's.
            NotAllowed: the principal may not stop it.
            UnknownTerm: the vocabulary holds no such purpose.
        """
        self._publisher.lock()
        tenant = self._check(principal, kind, subject)
        publication, fact_id = self._carry_out(principal, kind, subject, reason)
        row = StopRow(
            id=new_id("stp"),
            kind=kind,
            subject=subject,
            tenant=tenant,
            fact_id=fact_id,
            reason=reason,
            principal_id=principal.id,
            principal_name=principal.name,
            at_us=self._now_us,
            epoch=publication.epoch,
            second_signature_due_at_us=self._now_us + SIGNATURE_WITHIN_US,
            signed_by=None,
            signed_at_us=None,
        )
        self._session.add(row)
        self._session.flush()
        return self._record(row)

    def sign(self, stop_id: str, principal: Principal) -> StopRecord:
        """Puts the second signature under a stop, late ones too.

        Raises:
            NotFound: no such stop, or one of another tenant's things.
            NotAllowed: the principal could not have stopped it.
            SelfApproval: the same person stopped it.
            AlreadySigned: somebody signed before.
        """
        lock_for_writing(self._session, f"stop:{stop_id}")
        row = self._session.get(StopRow, stop_id, populate_existing=True)
        if row is None:
            raise unknown("stop", stop_id)
        self._check_may(principal, row.kind, stop_id, row.tenant)
        if row.principal_id == principal.id:
            raise SelfApproval("You stopped this; somebody else has to sign.", stop_id=stop_id)
        if row.signed_by is not None:
            raise AlreadySigned("The stop has its second signature.", stop_id=stop_id)
        row.signed_by, row.signed_at_us = principal.id, self._now_us
        self._session.flush()
        return self._record(row)

    def list(self, tenant: str | None = None) -> Records:
        """Stops, newest first; of one tenant's things, or of all with None."""
        query = select(StopRow).order_by(StopRow.id.desc())
        if tenant is not None:
            query = query.where(StopRow.tenant == tenant)
        return [self._record(row) for row in self._session.scalars(query)]

    def license_stop(self, key: str, principal: Principal) -> Publication:
        """Publishes a next version of a license's terms that allows nothing.

        Raises:
            NotFound: no such license was ever reviewed.
            NotAllowed: the principal is neither of compliance nor an operator.
        """
        self._publisher.lock()
        Authority.check_platform(principal)
        known = read_licenses(self._session).get(key.lower())
        if known is None:
            raise unknown("license", key)
        self._edits.put_license(known.model_copy(update={**_NOTHING_ALLOWED, "reviewed_by": principal.name}))
        return self._narrowing.publish("license.stop", key.lower(), principal)

    def _carry_out(
        self, principal: Principal, kind: StopKind, subject: str, reason: str
    ) -> tuple[Publication, str]:
        """Narrows, and returns the publication with the id of the fact that stops."""
        match kind:
            case "expert":
                return self._narrowing.suspend_expert(subject, principal), subject
            case "tenant":
                return self._narrowing.suspend_tenant(subject, principal), subject
            case "deployment":
                return self._narrowing.remove_deployment(subject, principal), subject
            case "license":
                publication = self.license_stop(subject, principal)
                return publication, f"{subject.lower()}@{self._license_version(subject)}"
            case "purpose":
                rule = ForbidRule(purpose=subject, text=reason)
                self._edits.check_rule(rule)
                rule_id = self._edits.add_rule(rule.model_dump(), "forbid")
                return self._narrowing.publish("rule.forbid", rule_id, principal), rule_id

    def _check(self, principal: Principal, kind: StopKind, subject: str) -> str | None:
        """Lets those pass who may stop this, and returns whose it is."""
        tenant: str | None = None
        if kind == "expert":
            expert = self._session.get(ExpertRow, subject)
            tenant = None if expert is None else expert.tenant
        elif kind == "deployment":
            deployment = self._session.get(DeploymentRow, subject)
            tenant = None if deployment is None else deployment.tenant
        elif kind == "tenant":
            tenant = subject
        if kind in {"expert", "deployment"} and tenant is None:
            raise unknown(kind, subject)
        self._check_may(principal, kind, subject, tenant)
        return tenant

    @staticmethod
    def _check_may(principal: Principal, kind: str, object_id: str, tenant: str | None) -> None:
        if kind in {"expert", "deployment"} and tenant is not None:
            own = Role.OWNER if kind == "expert" else Role.DEVELOPER
            check_narrower(principal, kind, object_id, tenant, own)
        elif not principal.has(Role.COMPLIANCE, Role.OPERATOR):
            raise NotAllowed(f"To stop a {kind} a key needs the role compliance or operator.", kind=kind)

    def _license_version(self, key: str) -> int:
        query = select(func.max(LicenseRow.version)).where(LicenseRow.key == key.lower())
        return self._session.scalar(query) or 0

    def _record(self, row: StopRow) -> StopRecord:
        fields = columns_for(StopRecord, row)
        state = "signed"
        if row.signed_by is None:
            state = "overdue" if self._now_us > row.second_signature_due_at_us else "awaits_signature"
        return StopRecord.model_validate({**fields, "state": state, "in_force": self._in_force(row)})

    def _in_force(self, row: StopRow) -> bool:
        """Whether the thing is still out of use, by this stop or by another act."""
        match row.kind:
            case "expert":
                expert = self._session.get(ExpertRow, row.subject)
                return expert is not None and expert.state in {"suspended", "erased"}
            case "tenant":
                tenant = self._session.get(TenantRow, row.subject)
                return tenant is not None and tenant.status != "active"
            case "deployment":
                deployment = self._session.get(DeploymentRow, row.subject)
                return deployment is not None and deployment.state == "removed"
            case "license":
                return row.fact_id == f"{row.subject.lower()}@{self._license_version(row.subject)}"
            case _:
                rule = self._session.get(RuleRow, row.fact_id)
                return rule is not None and rule.state == "live"


# Named here because inside the class ``list`` is the method.
Records = list[StopRecord]

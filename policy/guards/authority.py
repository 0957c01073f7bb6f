# SPDX-License-Identifier: Apache-2.0
"""Who may make which edit, and who may approve it. The table stands in ``policy.changing.changes``.

Objects of other tenants are answered like objects that do not exist. Knows nothing of what an edit does.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from policy.errors import NotAllowed, NotFound, NotYours
from policy.facts.terms import ANY
from policy.records.items import (
    ChangeItem,
    ConsentGive,
    ConsentRenew,
    DeploymentPut,
    ExpertResume,
    GrantGive,
    LicensePut,
    ListingPut,
    RuleLift,
    RulePermit,
)
from policy.tables import ConsentRow, ExpertRow
from tenants.accounts.tables import DatasetRow
from tenants.roles import Principal, Role


class Authority:
    """Answers by looking up who owns what, within one unit of work."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def check_author(self, principal: Principal, item: ChangeItem) -> None:
        """Lets those pass who may propose the edit.

        Raises:
            NotAllowed: the role is not one that makes such edits.
            NotFound: the object does not exist or is another tenant's.
        """
        match item:
            case ConsentGive():
                self.check_owner(principal, item.expert_id, item.dataset_id)
            case ConsentRenew():
                word = self._session.get(ConsentRow, item.consent_id)
                _own(principal, "consent", item.consent_id, None if word is None else word.tenant)
                _need(principal, "decide about the use of experts", Role.OWNER)
            case GrantGive() | ListingPut():
                self.check_owner(principal, item.expert_id)
            case ExpertResume():
                if not principal.has(Role.COMPLIANCE):
                    self.check_owner(principal, item.expert_id)
            case RulePermit() | RuleLift() | LicensePut():
                _need(principal, "write rules and license terms", Role.COMPLIANCE)
            case DeploymentPut():
                _need(principal, "propose deployments", Role.DEVELOPER)
                if item.tenant != principal.tenant:
                    raise NotAllowed(
                        "A deployment belongs to its developer's own tenant.", tenant=item.tenant
                    )
            case _:
                _need(principal, "resume tenants", Role.COMPLIANCE, Role.OPERATOR)

    def check_approver(self, principal: Principal, item: ChangeItem, owner: str) -> None:
        """Lets those pass who may approve the edit; that they are not the author is checked elsewhere.

        Args:
            principal: who approves.
            item: the edit.
            owner: tenant of the change's author.

        Raises:
            NotAllowed: somebody else has to approve this.
        """
        if principal.has(Role.COMPLIANCE):
            return
        match item:
            case ConsentGive() | ConsentRenew() | GrantGive() | ListingPut():
                if not (principal.has(Role.OWNER) and principal.tenant == owner):
                    raise NotAllowed(
                        "Consents, grants and listings are approved by another owner of the same tenant or "
                        "by compliance."
                    )
            case DeploymentPut() | ExpertResume():
                raise NotAllowed("Compliance approves deployments and resumed experts.")
            case _:
                _need(principal, "approve rules, license terms and resumed tenants", Role.OPERATOR)

    def check_owner(self, principal: Principal, expert_id: str, dataset_id: str | None = None) -> None:
        """Lets an owner's principal pass that speaks for the expert (or dataset).

        Raises:
            NotFound: no such expert or dataset, or another tenant's.
            NotAllowed: the principal is no owner.
        """
        if dataset_id is not None:
            dataset = self._session.get(DatasetRow, dataset_id)
            _own(principal, "dataset", dataset_id, None if dataset is None else dataset.tenant)
        if expert_id != ANY:
            expert = self._session.get(ExpertRow, expert_id)
            if expert is None or dataset_id is None:
                _own(principal, "expert", expert_id, None if expert is None else expert.tenant)
        _need(principal, "decide about the use of experts", Role.OWNER)

    @staticmethod
    def check_compliance(principal: Principal) -> None:
        """Lets compliance pass.

        Raises:
            NotAllowed: the principal has not the role.
        """
        _need(principal, "write rules", Role.COMPLIANCE)

    @staticmethod
    def check_platform(principal: Principal) -> None:
        """Lets compliance and operators pass.

        Raises:
            NotAllowed: the principal has neither role.
        """
        _need(principal, "suspend tenants", Role.COMPLIANCE, Role.OPERATOR)


def check_narrower(principal: Principal, noun: str, object_id: str, tenant: str, own_role: Role) -> None:
    """Lets those pass who may narrow: the owner's (or developer's) principals, compliance and operators.

    Raises:
        NotFound: the object is another tenant's.
        NotAllowed: the principal belongs to the tenant but has not the role.
    """
    if principal.has(Role.COMPLIANCE, Role.OPERATOR):
        return
    _own(principal, noun, object_id, tenant)
    _need(principal, f"narrow the use of this {noun}", own_role)


def unknown(noun: str, object_id: str) -> NotFound:
    """What is said of an object that does not exist; the same words hide one that is another tenant's."""
    return NotFound(f"There is no such {noun}; list the {noun}s to see which there are.", id=object_id)


def _own(principal: Principal, noun: str, object_id: str, tenant: str | None) -> None:
    if tenant is None:
        raise unknown(noun, object_id)
    if tenant != principal.tenant:
        raise NotYours(unknown(noun, object_id).sentence, id=object_id)


def _need(principal: Principal, act: str, *roles: Role) -> None:
    if not principal.has(*roles):
        listed = " or ".join(role.value for role in roles)
        raise NotAllowed(f"To {act} a key needs the role {listed}.", roles=[role.value for role in roles])

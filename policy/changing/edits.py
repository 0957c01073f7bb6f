# SPDX-License-Identifier: Apache-2.0
"""What each edit of a change writes into the register. Knows nothing of who may make or approve it."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes
from model_core.packing.ids import new_id
from policy.consents.book import ConsentBook
from policy.consents.renewal import check_renewal, renew
from policy.deciding.licenses import check_expression
from policy.epochs.reading import read_licenses
from policy.errors import InvalidChange
from policy.facts import vocabulary
from policy.facts.snapshot import DeploymentFact, LicenseFact
from policy.facts.terms import ANY
from policy.guards.authority import unknown
from policy.guards.overlaps import write_alone
from policy.guards.versions import check_version
from policy.records.items import (
    ChangeItem,
    ConsentGive,
    ConsentRenew,
    DeploymentPut,
    ExpertResume,
    ForbidRule,
    ForbidUse,
    GrantGive,
    LicensePut,
    ListingPut,
    RuleLift,
    RulePermit,
    TenantResume,
)
from policy.tables import (
    BaseRow,
    ConsentEventRow,
    ConsentRow,
    DeploymentRow,
    ExpertRow,
    GrantRow,
    LicenseRow,
    ListingRow,
    RuleRow,
)
from tenants.accounts.accounts import Accounts
from tenants.accounts.tables import TenantRow


class Edits:
    """Checks edits against the register and carries them out, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def check(self, item: ChangeItem | ForbidUse) -> None:
        """Refuses early what every decision would deny.

        Raises:
            UnknownTerm: a purpose, region or action that the vocabulary does not hold.
            InvalidLicenseExpression: a license that can not be read or was never reviewed.
            InvalidChange: times that never hold, or an edit that contradicts the register.
            NotFound: an edit names what does not exist.
        """
        words = vocabulary.vocabulary()
        match item:
            case ConsentGive() | GrantGive() | ForbidUse():
                words.check_words(action=item.action, purpose=item.purpose, region=item.region)
                self._check_times(item.valid_from_us, item.valid_until_us)
                self._check_tenant(item.consumer_tenant if isinstance(item, GrantGive) else item.recipient)
            case ConsentRenew():
                check_renewal(self._session, self._now_us, item)
            case RulePermit():
                self.check_rule(item)
            case ListingPut():
                check_expression(item.license, read_licenses(self._session))
                if self._expert(item.expert_id).state in {"suspended", "erased"}:
                    raise InvalidChange(
                        "The expert is suspended or erased; resume it before listing it anew."
                    )
            case ExpertResume():
                if self._expert(item.expert_id).state != "suspended":
                    raise InvalidChange("The expert is not suspended.", expert_id=item.expert_id)
            case DeploymentPut():
                words.check_words(action=item.action, purpose=item.purpose, region=item.region)
                self._check_deployment(item)
            case TenantResume():
                self._check_tenant(item.slug)
            case LicensePut():
                if not item.fact.reviewed_by.strip():
                    raise InvalidChange("License terms name the person who reviewed them.", key=item.fact.key)
            case RuleLift():
                self._forbidding(item.rule_id)

    def check_rule(self, rule: RulePermit | ForbidRule) -> None:
        """Refuses a rule that speaks of what does not exist.

        Raises:
            UnknownTerm: a purpose, region or action that the vocabulary does not hold.
            NotFound: no such tenant or expert.
        """
        words = vocabulary.vocabulary()
        words.check_words(action=rule.action, purpose=rule.purpose, region=rule.region)
        self._check_tenant(rule.consumer_tenant)
        if rule.expert_id != ANY:
            self._expert(rule.expert_id)

    def apply(self, item: ChangeItem, tenant: str, epoch: int, principal_id: str | None) -> None:
        """Writes one edit.

        Args:
            item: the edit, checked before.
            tenant: whose word it is: the tenant of the change's author.
            epoch: the epoch that it is published with.
            principal_id: the author; None in a preview, which is rolled back.
        """
        match item:
            case ConsentGive():
                self.add_consent(item, "permit", tenant, epoch, principal_id)
            case ConsentRenew():
                renew(self._session, self._now_us, item, epoch, principal_id)
            case GrantGive():
                self._add_grant(item)
            case RulePermit():
                self.add_rule(item.model_dump(exclude={"kind"}), "permit")
            case ListingPut():
                self._put_listing(item, epoch)
            case ExpertResume():
                # Its last listing still stands; one that never was offered goes back to sealed.
                row = self._expert(item.expert_id)
                listed = self._session.scalar(
                    select(func.count()).select_from(ListingRow).where(ListingRow.expert_id == row.expert_id)
                )
                row.state = "listed" if listed else "sealed"
            case TenantResume():
                Accounts(self._session, self._now_us).resume_tenant(item.slug)
            case DeploymentPut():
                self._put_deployment(item)
            case LicensePut():
                self.put_license(item.fact)
            case RuleLift():
                self._forbidding(item.rule_id).state = "removed"
        self._session.flush()

    def add_consent(
        self,
        item: ConsentGive | ForbidUse,
        effect: str,
        tenant: str,
        epoch: int,
        principal_id: str | None,
    ) -> str:
        """Writes an owner's word and the event that it was given; returns the consent's id."""
        values = item.model_dump(exclude={"kind", "valid_from_us", "paper", "record_id"})
        start_us = self._now_us if item.valid_from_us is None else item.valid_from_us
        row = ConsentRow(
            **{**values, "commercial": int(item.commercial)},
            id=new_id("con"),
            tenant=tenant,
            effect=effect,
            valid_from_us=start_us,
            state="given",
            at_us=self._now_us,
        )
        write_alone(self._session, row)
        if principal_id is not None:
            self._session.add(
                ConsentEventRow(
                    consent_id=row.id,
                    n=0,
                    event="given",
                    at_us=self._now_us,
                    epoch=epoch,
                    principal_id=principal_id,
                )
            )
            if isinstance(item, ConsentGive):
                book = ConsentBook(self._session, self._now_us)
                book.note_given(row, item.paper, principal_id, epoch, item.record_id)
        return row.id

    def add_rule(self, fields: dict[str, str], effect: str) -> str:
        """Writes a rule; returns its id."""
        row = RuleRow(**fields, id=new_id("rul"), effect=effect, state="live", at_us=self._now_us)
        self._session.add(row)
        self._session.flush()
        return row.id

    def put_license(self, terms: LicenseFact) -> int:
        """Writes the next version of a license's terms, whatever version they name; returns it."""
        known = read_licenses(self._session).get(terms.key.lower())
        fact = terms.model_copy(update={"version": 1 if known is None else known.version + 1})
        facets = canonical_bytes(fact.model_dump(mode="json")).decode()
        row = LicenseRow(key=fact.key.lower(), version=fact.version, facets=facets, at_us=self._now_us)
        self._session.add(row)
        return fact.version

    def _add_grant(self, item: GrantGive) -> None:
        values = item.model_dump(exclude={"kind", "valid_from_us", "commercial"})
        row = GrantRow(
            **values,
            commercial=int(item.commercial),
            id=new_id("grt"),
            tenant=self._expert(item.expert_id).tenant,
            valid_from_us=self._now_us if item.valid_from_us is None else item.valid_from_us,
            state="given",
            at_us=self._now_us,
        )
        write_alone(self._session, row)

    def _put_listing(self, item: ListingPut, epoch: int) -> None:
        row = self._expert(item.expert_id)
        if self._session.get(ListingRow, (item.expert_id, epoch)) is not None:
            raise InvalidChange("One change lists an expert once.", expert_id=item.expert_id)
        self._session.add(
            ListingRow(
                expert_id=item.expert_id,
                epoch=epoch,
                price_micro_per_1k_tokens=item.price_micro_per_1k_tokens,
                license=item.license,
                at_us=self._now_us,
            )
        )
        row.state = "listed"

    def _put_deployment(self, item: DeploymentPut) -> None:
        fact = DeploymentFact.model_validate(item.model_dump(exclude={"kind", "expected_version"}))
        document = canonical_bytes(fact.model_dump(mode="json", exclude={"members"})).decode()
        row = self._session.get(DeploymentRow, item.name)
        if row is None:
            row = DeploymentRow(name=item.name, version=0)
            self._session.add(row)
        row.tenant, row.base_digest, row.document = item.tenant, item.base_digest, document
        row.state, row.at_us, row.version = "live", self._now_us, row.version + 1

    def _check_deployment(self, item: DeploymentPut) -> None:
        if self._session.get(BaseRow, item.base_digest) is None:
            raise unknown("base", item.base_digest)
        row = self._session.get(DeploymentRow, item.name)
        if row is not None and row.tenant != item.tenant:
            # Names are global, since they are the model names of one API; that one is taken is no secret.
            raise InvalidChange(f"The name {item.name} is taken; choose another.", name=item.name)
        check_version(0 if row is None else row.version, item.expected_version, item.name)

    def _check_times(self, start_us: int | None, end_us: int | None) -> None:
        if end_us is not None and end_us <= max(self._now_us, start_us or 0):
            raise InvalidChange("The permission would end before it begins; give a later end.")

    def _check_tenant(self, slug: str) -> None:
        if slug != ANY and self._session.get(TenantRow, slug) is None:
            raise unknown("tenant", slug)

    def _forbidding(self, rule_id: str) -> RuleRow:
        row = self._session.get(RuleRow, rule_id)
        if row is None or row.effect != "forbid" or row.state != "live":
            raise unknown("forbidding rule", rule_id)
        return row

    def _expert(self, expert_id: str) -> ExpertRow:
        row = self._session.get(ExpertRow, expert_id)
        if row is None:
            raise unknown("expert", expert_id)
        return row

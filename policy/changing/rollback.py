# SPDX-License-Identifier: Apache-2.0
"""Undoes a published change: what of it can be undone by narrowing at once, the rest as a new change.

What a change did is read off the two snapshots around its epoch, so nothing has to remember it. Each fact
that it wrote is taken back by the ordinary act for that (a consent is withdrawn, a new endpoint removed),
which is published at once; each fact that it replaced is put back as it was, which somebody else approves
like any other change. What later epochs changed again is left to people.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from policy.changing.changes import Changes
from policy.changing.narrowing import Narrowing
from policy.changing.stops import Stops
from policy.deciding.licenses import shipped_licenses
from policy.errors import ChangeClosed, InvalidChange
from policy.facts.snapshot import RuleFact, Snapshot
from policy.facts.vocabulary import CURRENT_VERSION
from policy.publishing.publication import Publisher
from policy.records.changes import RollbackRecord
from policy.records.epochs import Publication
from policy.records.items import ChangeItem, DeploymentPut, ForbidRule, LicensePut, ListingPut
from tenants.roles import Principal

Undo = Callable[[Principal], Publication]


class Rollback:
    """The way back, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._publisher = Publisher(session, now_us)
        self._changes = Changes(session, now_us)
        self._narrowing = Narrowing(session, now_us)
        self._stops = Stops(session, now_us)

    def roll_back(self, change_id: str, principal: Principal) -> RollbackRecord:
        """Narrows at once what can be, and lays the rest before a reviewer.

        Args:
            change_id: a published change.
            principal: who; needs what each single act of it needs.

        Raises:
            ChangeClosed: the change was never published.
            InvalidChange: a later epoch changed one of its facts again, or nothing of it is left.
            NotAllowed, NotFound: the principal may not do one of the acts.
        """
        self._publisher.lock()
        record = self._changes.get(change_id, previewed=False)
        if record.epoch is None:
            raise ChangeClosed(
                "The change was never published; there is nothing to undo.", change_id=change_id
            )
        before = self._publisher.known(record.epoch - 1) if record.epoch > 1 else _nothing()
        after = self._publisher.known(record.epoch)
        undone, items = self._plan(before, after, self._publisher.standing().snapshot)
        if not undone and not items:
            raise InvalidChange("Nothing of the change is left to undo.", change_id=change_id)
        published = [undo(principal) for undo in undone]
        proposed = None
        if items:
            title = f"Roll back: {record.title}"[:200]
            proposed = self._changes.propose(principal, title, items, rolls_back=change_id)
        return RollbackRecord(rolls_back=change_id, publications=tuple(published), change=proposed)

    def _plan(self, before: Snapshot, after: Snapshot, now: Snapshot) -> tuple[list[Undo], list[ChangeItem]]:
        narrowing = self._narrowing
        live = {rule.id for rule in now.rules}
        undone: list[Undo] = [
            *(
                partial(narrowing.withdraw_consent, given.id)
                for given in _new(before, after, "consents")
                if _still(now, "consents", given.id, "given")
            ),
            *(
                partial(narrowing.revoke_grant, grant.id)
                for grant in _new(before, after, "grants")
                if _still(now, "grants", grant.id, "given")
            ),
            *(
                partial(narrowing.remove_permit_rule, rule.id)
                for rule in _new(before, after, "rules")
                if rule.id in live
            ),
            *(partial(narrowing.add_forbid_rule, _forbidden(rule)) for rule in _new(after, before, "rules")),
        ]
        items: list[ChangeItem] = []
        for old, new in _pairs(before.tenants_by_slug, after.tenants_by_slug, now.tenants_by_slug):
            if old is not None and new.status == "active":
                undone.append(partial(self._narrowing.suspend_tenant, new.slug))
        self._plan_experts(before, after, now, undone, items)
        self._plan_terms(before, after, now, undone, items)
        return undone, items

    def _plan_experts(
        self, before: Snapshot, after: Snapshot, now: Snapshot, undone: list[Undo], items: list[ChangeItem]
    ) -> None:
        olds, news, nows = (
            {fact.expert_id: fact for fact in snapshot.experts} for snapshot in (before, after, now)
        )
        for old, new in _pairs(olds, news, nows):
            if old is None and new.state != "listed":
                continue  # it was admitted meanwhile, which is no edit of a change
            if old is None or old.state != "listed":
                undone.append(partial(self._narrowing.suspend_expert, new.expert_id))
            else:
                items.append(
                    ListingPut(
                        expert_id=old.expert_id,
                        price_micro_per_1k_tokens=old.price_micro_per_1k_tokens,
                        license=old.license,
                    )
                )

    def _plan_terms(
        self, before: Snapshot, after: Snapshot, now: Snapshot, undone: list[Undo], items: list[ChangeItem]
    ) -> None:
        olds, news, nows = (_asked(snapshot) for snapshot in (before, after, now))
        for old, new in _pairs(olds, news, nows):
            if old is None:
                undone.append(partial(self._narrowing.remove_deployment, new.name))
            else:
                items.append(DeploymentPut.model_validate(old.model_dump(exclude={"members"})))
        for old, new in _pairs(before.licenses_by_key, after.licenses_by_key, now.licenses_by_key):
            if old is None:
                undone.append(partial(self._stops.license_stop, new.key))
            else:
                items.append(LicensePut(fact=old))


def _nothing() -> Snapshot:
    """What stood before the first epoch."""
    return Snapshot(
        epoch=0,
        published_at_us=0,
        vocabulary_version=CURRENT_VERSION,
        licenses=tuple(shipped_licenses()),
    )


def _forbidden(rule: RuleFact) -> ForbidRule:
    return ForbidRule(**rule.model_dump(exclude={"id", "effect"}))


def _asked(snapshot: Snapshot) -> dict[str, Any]:
    """Deployments as their developers asked for them."""
    return {
        name: fact.model_copy(update={"members": None}) for name, fact in snapshot.deployments_by_name.items()
    }


def _new(before: Snapshot, after: Snapshot, kind: str) -> list[Any]:
    known = {fact.id for fact in getattr(before, kind)}
    return [fact for fact in getattr(after, kind) if fact.id not in known]


def _still(now: Snapshot, kind: str, identity: str, state: str) -> bool:
    return any(fact.id == identity and fact.state == state for fact in getattr(now, kind))


def _pairs(olds: dict[str, Any], news: dict[str, Any], nows: dict[str, Any]) -> list[tuple[Any | None, Any]]:
    """Facts that the change wrote or replaced, each with what it replaced.

    Raises:
        InvalidChange: one of them was changed again.
    """
    found = []
    for name, new in news.items():
        old, current = olds.get(name), nows.get(name)
        if old in (new, current):
            continue
        if current != new:
            raise InvalidChange(
                "A later epoch changed this again; undo that first, or write a change of your own.", fact=name
            )
        found.append((old, new))
    return found

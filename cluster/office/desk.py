# SPDX-License-Identifier: Apache-2.0
"""The desk: every room of the house within one unit of work.

A desk is made when a unit of work opens and is worthless when it closes. It is what operations get to work
with; it does not know who asks, nor what for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cluster.home import Home
from cluster.settings import Settings
from model_core.packing.store import ArtifactStore

if TYPE_CHECKING:
    from cluster.office.scales import Weighed
    from policy.audit.chain import Audit
    from policy.billing.books import Ledger
    from policy.billing.metering import Metering
    from policy.billing.stopped import Stopped
    from policy.changing.drafts import Drafts
    from policy.changing.rollback import Rollback
    from policy.changing.schedule import Schedule
    from policy.changing.stops import Stops
    from policy.consents.book import ConsentBook
    from policy.consents.vault import Vault
    from policy.erasures.book import Erasures
    from policy.erasures.holds import Holds
    from policy.erasures.notifications import Notifications
    from policy.preview.previews import Previews
    from policy.preview.worth import Worth
    from policy.publishing.history import History
    from policy.publishing.outbox import Outbox
    from policy.register import Register
    from tenants.accounts.accounts import Accounts
    from tenants.accounts.datasets import Datasets
    from tenants.accounts.jobs import JobBook
    from tenants.accounts.repeats import Repeats


def now_us() -> int:
    """Microseconds since the Unix epoch, UTC."""
    return time.time_ns() // 1000


@dataclass(kw_only=True)
class Desk:
    """The rooms of one unit of work, each opened when it is first asked for.

    Attributes:
        session: the open unit of work (``tenants.accounts.database``); committed by whoever opened it.
        home: folders of the installation.
        artifacts: where bundles lie.
        settings: the operator's choices.
        heard: when each model host last asked for news, in microseconds; empty after a start.
        weighed: the expert that was weighed for this unit of work, if it admits one.
        now_us: the one time at which everything in this unit of work happens.
    """

    session: Any
    home: Home
    artifacts: ArtifactStore
    settings: Settings
    heard: Mapping[str, int] = field(default_factory=dict)
    weighed: Weighed | None = None
    now_us: int = field(default_factory=now_us)

    @cached_property
    def accounts(self) -> Accounts:
        """Tenants, principals, keys."""
        from tenants.accounts.accounts import Accounts

        return Accounts(self.session, self.now_us)

    @cached_property
    def datasets(self) -> Datasets:
        """Data cards and where the documents lie."""
        from tenants.accounts.datasets import Datasets

        return Datasets(self.session, self.now_us)

    @cached_property
    def jobs(self) -> JobBook:
        """Training jobs and their attempts."""
        from tenants.accounts.jobs import JobBook

        return JobBook(self.session, self.now_us)

    @cached_property
    def repeats(self) -> Repeats:
        """Answers kept for idempotency keys."""
        from tenants.accounts.repeats import Repeats

        return Repeats(self.session, self.now_us)

    @cached_property
    def register(self) -> Register:
        """Bases, experts, consents, grants, rules, changes, deployments, epochs."""
        from policy.register import Register

        return Register(self.session, self.now_us)

    @cached_property
    def drafts(self) -> Drafts:
        """Changes that their author still writes."""
        from policy.changing.drafts import Drafts

        return Drafts(self.session, self.now_us)

    @cached_property
    def schedule(self) -> Schedule:
        """Approved changes that wait for their moment."""
        from policy.changing.schedule import Schedule

        return Schedule(self.session, self.now_us)

    @cached_property
    def stops(self) -> Stops:
        """Emergency stops and their second signatures."""
        from policy.changing.stops import Stops

        return Stops(self.session, self.now_us)

    @cached_property
    def rollback(self) -> Rollback:
        """The way back from published changes."""
        from policy.changing.rollback import Rollback

        return Rollback(self.session, self.now_us)

    @cached_property
    def previews(self) -> Previews:
        """Impact reports of changes and publications."""
        from policy.preview.previews import Previews

        return Previews(self.session, self.now_us)

    @cached_property
    def worth(self) -> Worth:
        """What experts were measured to be worth."""
        from policy.preview.worth import Worth

        return Worth(self.session, self.now_us)

    @cached_property
    def consents(self) -> ConsentBook:
        """Consent records with their notices."""
        from policy.consents.book import ConsentBook

        return ConsentBook(self.session, self.now_us)

    @cached_property
    def erasures(self) -> Erasures:
        """Requests to erase, with what became of every copy."""
        from policy.erasures.book import Erasures

        return Erasures(self.session, self.now_us)

    @cached_property
    def holds(self) -> Holds:
        """What has to be kept, whoever wants it erased."""
        from policy.erasures.holds import Holds

        return Holds(self.session, self.now_us)

    @cached_property
    def notifications(self) -> Notifications:
        """What tenants have to know."""
        from policy.erasures.notifications import Notifications

        return Notifications(self.session, self.now_us)

    @cached_property
    def vault(self) -> Vault:
        """What names people."""
        from policy.consents.vault import Vault

        return Vault(self.session, self.now_us)

    @cached_property
    def history(self) -> History:
        """What was known when."""
        from policy.publishing.history import History

        return History(self.session, self.now_us)

    @cached_property
    def outbox(self) -> Outbox:
        """Epochs that are still to be told."""
        from policy.publishing.outbox import Outbox

        return Outbox(self.session, self.now_us)

    @cached_property
    def metering(self) -> Metering:
        """Reservations and usage."""
        from policy.billing.metering import Metering

        return Metering(self.session, self.now_us)

    @cached_property
    def stopped(self) -> Stopped:
        """Open requests that must end."""
        from policy.billing.stopped import Stopped

        return Stopped(self.session, self.now_us)

    @cached_property
    def ledger(self) -> Ledger:
        """Entries, statements, budgets."""
        from policy.billing.books import Ledger

        return Ledger(self.session, self.now_us)

    @cached_property
    def audit(self) -> Audit:
        """The chained record of what was done."""
        from policy.audit.chain import Audit

        return Audit(self.session, self.now_us)

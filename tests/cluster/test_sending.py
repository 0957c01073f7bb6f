# SPDX-License-Identifier: Apache-2.0
"""Hosts get what changed since the epoch that they have, and the whole wherever that leads elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cluster.bootstrap import open_office
from cluster.hosting.gate import ReleaseGate
from cluster.hosting.link import RegisterLink
from cluster.hosting.news import read_snapshot
from cluster.hosting.plan import Roster
from cluster.office.counter import Office
from cluster.office.protocol import EpochNews
from cluster.settings import Settings
from policy.errors import SnapshotMismatch
from policy.facts.delta import Delta
from policy.facts.snapshot import RuleFact, Snapshot
from policy.records.items import ForbidRule
from tenants.roles import PLATFORM_TENANT

FIRST = Snapshot(epoch=1, published_at_us=1, vocabulary_version="1", format=2)


def after(snapshot: Snapshot, *rules: str) -> Snapshot:
    """The next epoch, with further rules."""
    edits = {("rules", one): RuleFact(id=one, effect="forbid") for one in rules}
    head = {"epoch": snapshot.epoch + 1, "published_at_us": snapshot.published_at_us + 1}
    return snapshot.changed(head, edits)


def news(snapshot: Snapshot, **fields: Any) -> EpochNews:
    """An answer about an epoch."""
    stated = {"epoch": snapshot.epoch, "snapshot_digest": snapshot.digest, "lease_s": 2.0, "office_at_us": 0}
    return EpochNews(**{**stated, **fields})


def changes(before: Snapshot, snapshot: Snapshot, *rules: str) -> bytes:
    """What leads from one epoch to the other."""
    edits = {("rules", one): snapshot.fact("rules", one) for one in rules}
    return Delta.of(before.epoch, before.digest, snapshot, edits).to_json()


def test_the_office_sends_what_changed_to_those_who_take_it(tmp_path: Path) -> None:
    """It leads from the epoch that was seen to the published one; who takes none or has none gets all."""

    async def story(office: Office, operator: str) -> None:
        wish = {"tenant": PLATFORM_TENANT, "principal": "carol", "roles": ["compliance"]}
        compliance = (await office.call("keys.create", operator, wish))["secret"]

        def publish(desk: Any) -> None:
            desk.register.add_forbid_rule(ForbidRule(text="no"), desk.accounts.authenticate(compliance))

        for _ in range(3):
            await office.do(publish)
        newest = await office.wait_epoch("srv", -1, 5, True)
        assert newest.changes_json is None
        held = {3: read_snapshot(newest)}
        for seen in (2, 1):
            whole = await office.wait_epoch("srv", seen, 5)
            assert (whole.changes_json, whole.snapshot_json) == (None, newest.snapshot_json)
            told = await office.wait_epoch("srv", seen, 5, True)
            assert told.snapshot_json is None
            assert told.changes_json is not None
            held[seen] = await office.look(lambda desk, seen=seen: desk.register.snapshot(seen))
            assert read_snapshot(told, held[seen]) == held[3]
            assert len(told.changes_json) < len(newest.snapshot_json or b"") / 4

    async def run() -> None:
        settings = Settings(home=tmp_path / "home", starter_base="none", lease_s=60)
        office = open_office(settings.model_dump(mode="json"))
        try:
            await story(office, (tmp_path / "home" / "operator.key").read_text())
        finally:
            office.close()

    asyncio.run(run())


def test_changes_that_lead_elsewhere_are_refused() -> None:
    """Neither a wrong start nor a wrong end is taken; the whole snapshot is."""
    second = after(FIRST, "rul_1")
    way = changes(FIRST, second, "rul_1")
    assert read_snapshot(news(second, changes_json=way), FIRST) == second
    assert read_snapshot(news(second, snapshot_json=second.to_json()), FIRST) == second
    for known, told in ((after(FIRST), way), (FIRST, changes(FIRST, second))):
        with pytest.raises(SnapshotMismatch):
            read_snapshot(news(second, changes_json=told), known)


def test_a_host_asks_for_the_whole_after_changes_that_lead_elsewhere() -> None:
    """It puts nothing in force that is not the published epoch, and goes on with changes afterwards."""
    second, third = after(FIRST, "rul_1"), after(after(FIRST, "rul_1"), "rul_2")
    whole = {one.epoch: one.to_json() for one in (FIRST, second, third)}
    answers = [
        (True, news(FIRST, snapshot_json=whole[1])),
        (True, news(second, changes_json=changes(FIRST, second, "rul_1"), seen_digest=FIRST.digest)),
        (True, news(third, changes_json=changes(second, third), seen_digest=second.digest)),
        (False, news(third, snapshot_json=whole[3], seen_digest=second.digest)),
        (True, news(third)),
    ]
    asked: list[bool] = []
    in_force: list[int] = []

    class Register:
        async def wait_epoch(
            self, server_id: str, seen_epoch: int, timeout_s: float = 0.5, changes: bool = False
        ) -> EpochNews:
            asked.append(changes)
            return answers[len(asked) - 1][1]

        async def acknowledge(self, *said: object) -> None:
            pass

    async def applied(roster: Roster) -> None:
        in_force.append(roster.epoch)

    async def nothing(_: object) -> None:
        pass

    async def run() -> None:
        link = RegisterLink(
            Register(), "srv", "base", ReleaseGate(), apply=applied, load=nothing, stop=nothing
        )
        for _ in answers:
            await link._ask()
        assert link.counts.failures == 1

    asyncio.run(run())
    assert asked == [takes for takes, _ in answers]
    assert in_force == [1, 2, 3]

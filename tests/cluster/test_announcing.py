# SPDX-License-Identifier: Apache-2.0
"""The office tells of every epoch, in order and at least once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cluster.bootstrap import open_office
from cluster.office.announcer import announce, keep_announcing
from cluster.office.counter import Office
from cluster.settings import Settings
from policy.records.epochs import Announcement
from policy.records.items import ForbidRule
from tenants.roles import PLATFORM_TENANT


def _in_office(tmp_path: Path, story: Callable[[Office, str], Coroutine[Any, Any, None]]) -> None:
    """Opens the office of a home, as often as it is asked."""

    async def run() -> None:
        settings = Settings(home=tmp_path / "home", starter_base="none", lease_s=60)
        office = open_office(settings.model_dump(mode="json"))
        try:
            await story(office, (tmp_path / "home" / "operator.key").read_text())
        finally:
            office.close()

    asyncio.run(run())


async def _compliance(office: Office, operator: str) -> str:
    wish = {"tenant": PLATFORM_TENANT, "principal": "carol", "roles": ["compliance"]}
    return str((await office.call("keys.create", operator, wish))["secret"])


async def _publish(office: Office, compliance: str) -> None:
    def work(desk: Any) -> None:
        rule = ForbidRule(region="eu", text="not there")
        desk.register.add_forbid_rule(rule, desk.accounts.authenticate(compliance))

    await office.do(work)


def test_epochs_are_told_in_order_and_told_again_after_a_crash(tmp_path: Path) -> None:
    """A teller that ends before it could note what it told tells it again; nothing is left out."""
    told: list[int] = []

    def fails(announcement: Announcement) -> None:
        told.append(announcement.epoch)
        if announcement.epoch == 2:
            raise RuntimeError("the office ends here")

    async def crash(office: Office, operator: str) -> None:
        compliance = await _compliance(office, operator)
        for _ in range(3):
            await _publish(office, compliance)
        with pytest.raises(RuntimeError):
            await announce(office, fails)

    async def again(office: Office, operator: str) -> None:
        del operator
        assert await announce(office, lambda one: told.append(one.epoch)) == 3
        assert await announce(office, lambda one: told.append(one.epoch)) == 0

    _in_office(tmp_path, crash)
    _in_office(tmp_path, again)
    assert told == [1, 2, 1, 2, 3]


def test_the_announcer_is_woken_by_a_publication(tmp_path: Path) -> None:
    """While it runs, each epoch is told by itself, without anybody asking."""

    async def story(office: Office, operator: str) -> None:
        compliance = await _compliance(office, operator)
        heard: asyncio.Queue[int] = asyncio.Queue()
        teller = asyncio.create_task(keep_announcing(office, lambda one: heard.put_nowait(one.epoch)))
        for epoch in (1, 2):
            await _publish(office, compliance)
            assert await asyncio.wait_for(heard.get(), 25) == epoch  # by itself it looks every 30 s
        teller.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await teller

    _in_office(tmp_path, story)

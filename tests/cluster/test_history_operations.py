# SPDX-License-Identifier: Apache-2.0
"""The past over the counter: each sees of it what they may see of the present."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cluster.bootstrap import open_office
from cluster.office.counter import Office
from cluster.settings import Settings
from policy.errors import NotFound
from policy.records.items import DeploymentPut, ForbidRule
from tenants.errors import UnknownObject
from tenants.roles import PLATFORM_TENANT


def _in_office(tmp_path: Path, story: Callable[[Office, str], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        office = open_office(Settings(home=tmp_path / "home").model_dump(mode="json"))
        try:
            await story(office, (tmp_path / "home" / "operator.key").read_text())
        finally:
            office.close()

    asyncio.run(run())


def test_the_past_is_shown_as_far_as_the_present(tmp_path: Path) -> None:
    """Before the first epoch there was nothing; a deployment is shown to its tenant and the platform."""

    async def story(office: Office, operator: str) -> None:
        keys = {}
        for tenant, person, role in (
            (PLATFORM_TENANT, "carol", "compliance"),
            ("shop", "dora", "developer"),
            ("club", "clara", "developer"),
        ):
            if tenant != PLATFORM_TENANT:
                await office.call("tenants.create", operator, {"slug": tenant, "title": tenant})
            wish = {"tenant": tenant, "principal": person, "roles": [role]}
            keys[person] = (await office.call("keys.create", operator, wish))["secret"]
        base = (await office.call("bases.list", operator, {}))["items"][0]["id"]
        with pytest.raises(NotFound):
            await office.call("register.asof", keys["carol"], {"recorded_us": 1})

        def publish(desk: Any) -> None:
            people = {name: desk.accounts.authenticate(key) for name, key in keys.items()}
            words = {"purpose": "research", "region": "eu", "commercial": False}
            put = DeploymentPut(name="ask", tenant="shop", base_digest=base, **words)
            change = desk.register.propose(people["dora"], "an endpoint", [put])
            desk.register.approve(change.id, change.digest, people["carol"])
            desk.register.add_forbid_rule(ForbidRule(text="no"), people["carol"])

        await office.do(publish)
        for person in ("dora", "carol"):
            said = await office.call("register.asof", keys[person], {"deployment": "ask"})
            assert (said["epoch"], said["composition"]["deployment"], said["complete"]) == (2, "ask", True)
        sentences = set()
        for name in ("ask", "nowhere"):
            with pytest.raises(UnknownObject) as refused:
                await office.call("register.asof", keys["clara"], {"deployment": name})
            sentences.add(refused.value.sentence)
        assert len(sentences) == 1
        assert await office.call("corrections.list", keys["clara"], {"epoch": 2}) == {
            "items": [],
            "next": None,
        }
        with pytest.raises(NotFound):
            await office.call("corrections.list", keys["carol"], {"epoch": 9})

    _in_office(tmp_path, story)

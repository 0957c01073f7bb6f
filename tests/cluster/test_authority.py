# SPDX-License-Identifier: Apache-2.0
"""Law 9 for those who ask: open streams end when their key, tenant, deployment or budget is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.hosting.facts import HostSettings
from cluster.settings import Settings
from examples.storm import play
from examples.storm.goods import SMALL
from examples.storm.local import LocalHouse
from examples.storm.town import Town, found
from tests.cluster.host_worlds import slow_down

_LONGEST_S = 2.0  # the law's; on an idle machine it takes a few milliseconds


class Stream:
    """One open stream, read by a thread of its own."""

    def __init__(self, house: LocalHouse, key: str, deployment: str) -> None:
        self.times: list[float] = []
        self.last: dict[str, Any] = {}
        self.finish = ""
        self.error = ""
        body = {"model": deployment, "prompt": "x", "max_tokens": 100, "temperature": 0, "stream": True}
        self._thread = threading.Thread(target=self._read, args=(house.client(key), body), daemon=True)
        self._thread.start()

    def _read(self, client: Any, body: dict[str, Any]) -> None:
        try:
            for event in client.stream("/v1/completions", body):
                for choice in event["choices"]:
                    if choice["text"]:
                        self.times.append(time.monotonic())
                    self.finish = choice["finish_reason"] or self.finish
                self.last = event.get("marketplace") or self.last
        except Exception as error:
            self.error = repr(error)

    def flows(self) -> bool:
        """Whether some tokens came."""
        return len(self.times) > 3

    def end(self) -> None:
        """Waits until it has ended."""
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def town_and_house(tmp_path: Path) -> Iterator[tuple[Town, LocalHouse]]:
    """Two tenants' endpoints on two hosts whose steps take as long as those of a larger model."""
    settings = Settings(home=tmp_path / "home", starter_base="none")
    town = found(settings, tmp_path / "scratch", experts=4, endpoints=4, set_size=1, sizes=SMALL)
    choices = HostSettings(max_sequences=8, max_context=128)
    with LocalHouse(settings, town.base_digest, hosts=2, host_settings=choices) as house:
        play.wait_for_servers(house, town, 2, timeout_s=120)
        for server in house.servers:
            slow_down(server, 0.05)
        yield town, house


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_open_streams_of_every_host_end_with_the_reason(town_and_house: tuple[Town, LocalHouse]) -> None:
    """Within two seconds both hosts end the asker's streams, say why, and leave others alone."""
    town, house = town_and_house
    names = sorted(town.endpoints)
    asker, other = (town.endpoints[name][0] for name in names[:2])
    mine = [name for name in names if town.endpoints[name][0] == asker]
    operator = house.client(town.keys["operator"])
    key_id = town.keys[asker].removeprefix("mk_").rpartition("_")[0][:36]

    def ends(name: str, codes: set[str], act: Callable[[], object], *, neighbour: str = "") -> None:
        tenant = town.endpoints[name][0]
        streams = [Stream(house, town.keys[tenant], name) for _ in range(2)]
        beside = [Stream(house, town.keys[town.endpoints[neighbour][0]], neighbour)] if neighbour else []
        until(lambda: all(stream.flows() for stream in (*streams, *beside)))
        act()
        done = time.monotonic()
        for stream in streams:
            stream.end()
            assert stream.finish == "content_filter", stream.error
            assert stream.last["ended"]["code"] in codes
            assert len(stream.times) < 100
            assert max(stream.times) < done + _LONGEST_S
        for stream in beside:
            stream.end()
            assert stream.finish == "length", stream.error
            assert "ended" not in stream.last
        until(lambda: all(server.journal.settled for server in house.servers))
        budgets = {one["tenant"]: one for one in operator.call("ledger.budgets")["items"]}
        assert budgets[tenant]["held_micro"] == 0

    close = lambda: house.client(town.keys[asker]).call("deployments.remove", name=mine[0])  # noqa: E731
    ends(mine[0], {"deployment_closed"}, close, neighbour=names[1])
    lower = lambda: operator.call("ledger.budget", tenant=asker, limit_micro=0)  # noqa: E731
    ends(mine[1], {"budget_spent"}, lower, neighbour=names[1])
    operator.call("ledger.budget", tenant=asker, limit_micro=10**12)
    ends(mine[1], {"key_revoked"}, lambda: operator.call("keys.revoke", key_id=key_id), neighbour=names[1])
    suspend = lambda: operator.call("tenants.suspend", slug=other)  # noqa: E731
    ends(names[1], {"tenant_suspended", "deployment_denied"}, suspend)

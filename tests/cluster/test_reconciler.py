# SPDX-License-Identifier: Apache-2.0
"""The reconciler changes the difference and nothing else."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.deploy import host_application as application_name
from cluster.hosting import reconciler
from cluster.hosting.reconciler import Difference, Reconciler, compare
from cluster.office.protocol import EpochNews
from cluster.settings import Settings
from policy.errors import SnapshotMismatch
from policy.facts.delta import Delta
from policy.facts.kinds import DeploymentFact
from policy.facts.snapshot import Snapshot

BASES = tuple(f"sha256:{number:x}" * 1 + "0" * 63 for number in range(4))
states = st.sampled_from(["RUNNING", "DEPLOYING", "UNHEALTHY", "DEPLOY_FAILED", "NOT_STARTED", "DELETING"])


@given(st.frozensets(st.sampled_from(BASES)), st.dictionaries(st.sampled_from(BASES), states))
def test_needed_hosts_run_unneeded_ones_stop_healthy_ones_are_left_alone(
    needed: frozenset[str], running: dict[str, str]
) -> None:
    """Every needed base has a host or gets one; what Serve repairs by itself is not touched."""
    applications = {application_name(base): state for base, state in running.items()} | {"gateway": "RUNNING"}
    difference = compare(needed, applications)
    assert set(difference.start) == needed - set(running)
    failed = {base for base, state in running.items() if state in ("DEPLOY_FAILED", "NOT_STARTED")}
    assert set(difference.restart) == needed & failed
    surplus = {base for base, state in running.items() if base not in needed and state != "DELETING"}
    assert set(difference.stop) == {application_name(base) for base in surplus}
    assert "gateway" not in difference.stop


def test_nothing_to_do_is_nothing() -> None:
    """A marketplace at rest stays at rest."""
    assert compare(frozenset(BASES[:1]), {"gateway": "RUNNING", application_name(BASES[0]): "RUNNING"}) == (
        Difference()
    )


def test_nothing_is_started_before_the_gateway() -> None:
    """The reconciler never starts Serve itself: it would come up with an HTTP proxy that nobody asked for."""
    assert compare(frozenset(BASES), {}) == Difference()
    assert compare(frozenset(BASES), {"somebody-elses": "RUNNING"}) == Difference()
    assert compare(frozenset(BASES), {"gateway": "DEPLOYING"}).start == tuple(sorted(BASES))


class Alone(Reconciler):
    """A reconciler without office and thread; knows what it would change."""

    def __init__(self, *needed: str, office: Any = None) -> None:
        self._needed, self._calm_until_s = frozenset(needed), 0.0
        self._snapshot, self._office = None, office
        self.changed: list[Difference] = []

    def _change(self, difference: Difference) -> None:
        self.changed.append(difference)


@pytest.mark.parametrize(("gateway", "asked"), [(True, 1), (False, 3)])
def test_serve_is_left_alone_while_it_runs_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, gateway: bool, asked: int
) -> None:
    """But not before the gateway is up: then hosts are started at once."""
    running = {application_name(BASES[0]): "RUNNING"} | ({"gateway": "RUNNING"} if gateway else {})
    times = []
    monkeypatch.setattr(reconciler, "_running", lambda: times.append(1) or running)
    one = Alone(BASES[0])
    for _ in range(3):
        asyncio.run(one._act())
    assert (len(times), one.changed) == (asked, [])


@pytest.mark.parametrize("wanted", [True, False])
def test_kernels_are_compiled_before_a_host_needs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: bool
) -> None:
    """Where hosts compute with them at all."""
    folders: list[Path] = []
    monkeypatch.setattr(reconciler, "build_library", folders.append)
    monkeypatch.setattr(reconciler, "connect_office", lambda: None)
    monkeypatch.setattr(reconciler, "log_to", lambda *_: None)
    monkeypatch.setattr(Reconciler, "_work", lambda _: None)
    settings = Settings(home=tmp_path, host_kernels=wanted, kernels_folder=tmp_path / "kernels")
    Reconciler(settings.model_dump(mode="json"))
    for thread in threading.enumerate():
        if thread.name == "compiler":
            thread.join()
    assert folders == ([tmp_path / "kernels"] if wanted else [])


def test_what_differs_is_changed_and_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until Serve runs what is needed."""
    monkeypatch.setattr(reconciler, "_running", lambda: {"gateway": "RUNNING"})
    monkeypatch.setattr(reconciler, "_LOOK_S", 0.0)
    one = Alone(BASES[0])
    for _ in range(2):
        asyncio.run(one._act())
    assert one.changed == 2 * [Difference(start=(BASES[0],))]


class Desk:
    """An office that knows two epochs and says what the second changed, once wrongly."""

    def __init__(self, before: Snapshot, after: Snapshot, way: bytes, *, false: int) -> None:
        self.before, self.after, self.way, self.false = before, after, way, false
        self.asked: list[int] = []

    async def wait_epoch(self, _: str, seen: int, __: float, *, changes: bool) -> EpochNews:
        """The first epoch to who knows nothing the first time, the second to everybody else."""
        assert changes
        self.asked.append(seen)
        now = self.after if len(self.asked) > 1 else self.before
        digest = self.before.digest if self.false == len(self.asked) else now.digest
        whole = {"changes_json": self.way} if seen == 1 else {"snapshot_json": now.to_json()}
        return EpochNews(epoch=now.epoch, snapshot_digest=digest, lease_s=2.0, office_at_us=0, **whole)


def test_it_asks_for_what_changed_and_for_all_where_that_leads_elsewhere() -> None:
    """What is needed follows the register either way."""
    endpoint = DeploymentFact(
        name="desk",
        tenant="acme",
        base_digest=BASES[1],
        purpose="research",
        region="eu",
        commercial=False,
        created_at_us=1,
    )
    before = Snapshot(epoch=1, published_at_us=1, vocabulary_version="1", format=2)
    edits = {("deployments", "desk"): endpoint}
    after = before.changed({"epoch": 2, "published_at_us": 2}, edits)
    way = Delta.of(1, before.digest, after, edits).to_json()
    one = Alone(office=Desk(before, after, way, false=0))
    for _ in range(3):
        asyncio.run(one._look())
    assert (one._office.asked, one._needed) == ([-1, 1, 2], {BASES[1]})
    two = Alone(office=Desk(before, after, way, false=2))
    asyncio.run(two._look())
    with pytest.raises(SnapshotMismatch):
        asyncio.run(two._look())
    asyncio.run(two._look())
    assert (two._office.asked, two._needed) == ([-1, 1, -1], {BASES[1]})

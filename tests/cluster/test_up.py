# SPDX-License-Identifier: Apache-2.0
"""Up, down, status: repeatable, one at a time, and whole again after any kill."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.errors import AlreadyRunning
from cluster.home import Home
from cluster.ray_node import processes_of
from cluster.settings import Settings
from cluster.up import _only_one, status, take_down


def test_one_start_at_a_time(tmp_path: Path) -> None:
    """While one process starts or stops the marketplace, another is told so."""
    home = Home(tmp_path / "home")
    home.prepare()
    with _only_one(home), pytest.raises(AlreadyRunning):
        take_down(Settings(home=home.root))
    assert take_down(Settings(home=home.root)) is False


def test_nothing_runs_from_an_empty_home(tmp_path: Path) -> None:
    """The status of a marketplace that was never started says so and makes nothing."""
    settings = Settings(home=tmp_path / "home")
    assert not status(settings).running
    assert not settings.home.exists()


@pytest.mark.cluster
def test_up_again_changes_nothing(marketplace: Any) -> None:
    """A second ``up`` finds everything running, keeps every process and says the same address."""
    before = {process.pid for process in processes_of(marketplace.run_id)}
    said = marketplace.up()
    assert said["fresh"] is False
    assert said["url"] == marketplace.url
    after = {process.pid for process in processes_of(marketplace.run_id)}
    gone = before - after
    assert all(not Path(f"/proc/{pid}").exists() for pid in gone)
    assert len(gone) <= 2, "idle workers may end, parts may not"
    report = json.loads(marketplace.command("--json", "status").stdout.partition("\n}")[0] + "}")
    assert report["running"] is True
    assert {part["part"]: part["state"] for part in report["parts"]}["doors"] == "loopback only"


@pytest.mark.cluster
@pytest.mark.parametrize("victim", ["ray::Office", "ray::ServeReplica:gateway", "everything"])
def test_a_killed_part_comes_back(marketplace: Any, victim: str) -> None:
    """After SIGKILL and ``up`` the marketplace answers, and what was acknowledged is there."""
    auth = {"Authorization": f"Bearer {marketplace.operator_key}"}
    slug = f"t-{victim.rpartition(':')[2].lower()}-{time.time_ns()}"
    body = {"slug": slug, "title": "A tenant"}
    made = httpx.post(f"{marketplace.url}/api/v1/tenants", json=body, headers=auth, timeout=30)
    assert made.status_code in {200, 201}, made.text
    killed = 0
    for process in list(processes_of(marketplace.run_id)):
        if victim == "everything" or process.name().startswith(victim):
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
    assert killed >= 1
    said = marketplace.up()
    assert said["fresh"] is (victim == "everything")
    listed = httpx.get(f"{marketplace.url}/api/v1/tenants?limit=500", headers=auth, timeout=30).json()
    assert slug in {row["slug"] for row in listed["items"]}

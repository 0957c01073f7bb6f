# SPDX-License-Identifier: Apache-2.0
"""Up, down, status: repeatable, one at a time, and whole again after any kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

import cluster
from cluster.errors import AlreadyRunning
from cluster.home import Home
from cluster.ray_node import processes_of
from cluster.settings import Settings
from cluster.status import status
from cluster.up import _only_one, take_down

_PARTS = ("ray::Office", "ray::ServeReplica:gateway", "ray::ServeController")


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
def test_what_answers_does_not_stand_back(marketplace: Any) -> None:
    """Office and gateway get the processor like any other program, not after everything else."""
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    parts = [one for one in processes_of(marketplace.run_id) if one.name().startswith(_PARTS)]
    assert parts
    assert {one.nice() for one in parts} == {mine}


@pytest.mark.cluster
@pytest.mark.parametrize("victims", ["parts", "everything"])
def test_what_was_killed_comes_back(marketplace: Any, victims: str) -> None:
    """After SIGKILL and ``up`` the marketplace answers, and what was acknowledged is there.

    Parts (office, gateway, Serve's controller) are started again by Ray itself; a head that lost anything
    else ends as a whole.
    """
    auth = {"Authorization": f"Bearer {marketplace.operator_key}"}
    slug = f"{victims}-{time.time_ns()}"
    body = {"slug": slug, "title": "A tenant"}
    made = httpx.post(f"{marketplace.url}/api/v1/tenants", json=body, headers=auth, timeout=30)
    assert made.status_code in {200, 201}, made.text
    killed = 0
    for process in list(processes_of(marketplace.run_id)):
        if victims == "everything" or process.name().startswith(_PARTS):
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
    assert killed >= 3
    said = marketplace.up()
    assert said["fresh"] is (victims == "everything")
    listed = httpx.get(f"{marketplace.url}/api/v1/tenants?limit=500", headers=auth, timeout=30).json()
    assert slug in {row["slug"] for row in listed["items"]}


def test_who_only_starts_things_loads_no_tensors() -> None:
    """``up`` and the reconciler name the model host without loading torch."""
    script = (
        "import sys, cluster.up, cluster.jobs.foreman, cluster.hosting.reconciler, cluster.gateway.deploy;"
        "sys.exit('torch' in sys.modules)"
    )
    root = str(Path(cluster.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", script], cwd=root, check=False, timeout=120)
    assert done.returncode == 0

# SPDX-License-Identifier: Apache-2.0
"""The own Ray head: processes are found by their mark, ended exactly, and bound to loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.errors import StartFailed
from cluster.home import Home
from cluster.ray_node import (
    RUN_VARIABLE,
    ProcessMark,
    RayRun,
    end_run,
    processes_of,
    ray_environment,
    start_head,
)
from cluster.ray_worker import on_loopback
from cluster.settings import Settings

_SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]


def _sleeper(run_id: str | None) -> subprocess.Popen[bytes]:
    environment = {"PATH": os.environ["PATH"]} | ({RUN_VARIABLE: run_id} if run_id else {})
    process = subprocess.Popen(_SLEEP, env=environment, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of ours."""
    process = _sleeper(None)
    yield process
    process.kill()
    process.wait()


def test_a_run_is_ended_exactly(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    """Owner and orphans of the run end, its folder goes, another run and a stranger stay."""
    owner, orphan, other = _sleeper("run-a"), _sleeper("run-a"), _sleeper("run-b")
    folder = tmp_path / "mkt-x"
    folder.mkdir()
    run = RayRun(run_id="run-a", owner=ProcessMark.of(owner.pid), gcs_address="", temp_dir=folder)
    assert run.alive
    assert {process.pid for process in processes_of("run-a")} == {owner.pid, orphan.pid}
    end_run(run)
    assert not run.alive
    assert not psutil.pid_exists(orphan.pid)
    assert not folder.exists()
    assert other.poll() is None
    assert stranger.poll() is None
    assert end_run(run) == 0
    other.kill()
    other.wait()


def test_a_reused_process_number_is_not_ours(stranger: subprocess.Popen[bytes]) -> None:
    """A mark names a process by number and start time; the same number later is somebody else."""
    mark = ProcessMark.of(stranger.pid)
    assert mark.process() is not None
    old = mark.model_copy(update={"started_s": mark.started_s - 60})
    assert old.process() is None
    end_run(RayRun(run_id="none", owner=old, gcs_address="", temp_dir=Path("/nonexistent")))
    assert stranger.poll() is None
    stranger.kill()
    time.sleep(0.05)
    assert mark.process() is None  # a zombie has ended, whoever still has to collect it


def test_a_folder_that_is_not_a_runs_is_left_alone(tmp_path: Path) -> None:
    """A run file that was tampered with cannot make ``down`` remove other folders."""
    precious = tmp_path / "precious"
    precious.mkdir()
    gone = ProcessMark(pid=2**22 - 1, started_s=0.0)
    end_run(RayRun(run_id="none", owner=gone, gcs_address="", temp_dir=precious))
    assert precious.exists()


def test_a_head_that_cannot_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing start is reported with where its words are, and nothing of it stays."""
    home = Home(tmp_path / "home")
    home.prepare()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StartFailed) as failed:
        start_head(home, Settings(home=home.root))
    assert failed.value.facts["part"] == "ray"
    assert "ray-head.log" in failed.value.sentence


def test_a_run_is_told_of_before_it_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed while a head starts has written it down: the next start finds and ends it."""
    home = Home(tmp_path / "home")
    home.prepare()
    monkeypatch.setattr(sys, "executable", "/bin/cat")
    told: list[RayRun] = []

    def killed_here(run: RayRun) -> None:
        told.append(run)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_head(home, Settings(home=home.root), killed_here)
    assert not told[0].usable
    assert told[0].temp_dir.exists()
    end_run(told[0])
    assert not told[0].alive
    assert not told[0].temp_dir.exists()


def test_the_token_is_asked_for_explicitly(tmp_path: Path) -> None:
    """Ray is told to ask for a token, where it is, and that only its owner reads it."""
    home = Home(tmp_path / "home")
    home.prepare()
    environment = ray_environment(home)
    assert environment["RAY_AUTH_MODE"] == "token"
    token = Path(environment["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o077 == 0
    assert token.read_text() not in str(environment)
    other = Home(tmp_path / "other")
    other.prepare()
    assert other.ray_token_text() != home.ray_token_text()


@pytest.mark.parametrize(
    ("asked", "bound"),
    [
        ("[::]:0", "127.0.0.1:0"),
        ("0.0.0.0:7", "127.0.0.1:7"),
        ("127.0.0.1:8", "127.0.0.1:8"),
        ("10.0.0.5:9", "10.0.0.5:9"),
    ],
)
def test_everywhere_becomes_loopback(asked: str, bound: str) -> None:
    """An address that means every interface is replaced; one that was chosen is kept."""
    assert on_loopback(asked) == bound

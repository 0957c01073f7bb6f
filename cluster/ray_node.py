# SPDX-License-Identifier: Apache-2.0
"""The installation's own Ray head: started on loopback with a token, found again, ended to the last child.

Ray holds nothing that matters: the truth is in the database, so a lost head is replaced, not repaired. The
processes of one run carry the run's id in their environment; together with the recorded start time of the
head's owner that finds exactly our processes after any crash, and never anyone else's.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import psutil
from pydantic import BaseModel, ConfigDict

import cluster
from cluster.certificates import node_certificate
from cluster.errors import StartFailed
from cluster.home import Home
from cluster.settings import Settings, clean_environment

RUN_VARIABLE = "MARKETPLACE_RUN"

# A Unix socket's path holds 107 bytes, and Ray puts a session name and a socket name of 70 below this folder.
_LONGEST_TEMP_DIR = 34
_POLL_S = 0.05
_CREATE_TIME_TOLERANCE_S = 0.01


class ProcessMark(BaseModel):
    """A process that cannot be mistaken for a later one with the same number.

    Attributes:
        pid: process id.
        started_s: start time in seconds since the Unix epoch, as the kernel tells it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int
    started_s: float

    @classmethod
    def of(cls, pid: int) -> Self:
        """Marks a living process.

        Raises:
            psutil.NoSuchProcess: it is gone already.
        """
        return cls(pid=pid, started_s=psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """The process, if it still is the one that was marked and has not ended."""
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.started_s) < _CREATE_TIME_TOLERANCE_S
            if same and found.status() != psutil.STATUS_ZOMBIE:
                return found
        return None


class RayRun(BaseModel):
    """One run of the own head, as the run file keeps it.

    Attributes:
        run_id: random; every process of the run has it in its environment.
        owner: the process that owns the head; everything else dies with it.
        gcs_address: where drivers connect, on loopback; empty until it is known.
        temp_dir: Ray's folder of this run, removed at the end.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    owner: ProcessMark
    gcs_address: str
    temp_dir: Path

    @property
    def alive(self) -> bool:
        """True while the head runs; its owner ends with any part of it."""
        return self.owner.process() is not None

    @property
    def usable(self) -> bool:
        """True while the head runs and has ever taken drivers."""
        return bool(self.gcs_address) and self.alive


def ray_environment(home: Home) -> dict[str, str]:
    """What Ray reads from the environment, for the head and for every driver of this installation.

    Ray caches mode and token at import, so a driver must install these before it imports Ray.
    """
    home.ray_token_text()
    files = node_certificate(home)
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(files.certificate),
        "RAY_TLS_SERVER_KEY": str(files.key),
        "RAY_TLS_CA_CERT": str(files.authority),
        "RAY_AUTH_TOKEN_PATH": str(home.ray_token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        # without it num_gpus=0 means: every GPU
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # Ray starts workers at niceness 15: hosts, gateway and office would wait for everything else on the
        # machine, between two tokens too. What may wait (training) lowers itself.
        "RAY_worker_niceness": "0",
        # Ray replaces 127.0.0.1 by an outward address unless clusters are "not supported" on the platform;
        # this is the switch for that, and it keeps every address of an embedded head on loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def start_head(
    home: Home, settings: Settings, begun: Callable[[RayRun], object] = lambda _run: None
) -> RayRun:
    """Starts a head and answers once it takes drivers.

    Args:
        home: the installation.
        settings: the operator's choices.
        begun: told of the run as soon as it has a process, long before it takes drivers; whoever writes it
            down finds the head again even if this process is killed while it waits.

    Raises:
        StartFailed: it did not come up in ``start_timeout_s``; its log is named.
    """
    run_id = secrets.token_hex(16)
    temp_dir = _make_temp_dir(home)
    log = home.logs / "ray-head.log"
    answer = temp_dir / "head.json"
    order = {
        "num_cpus": settings.ray_cpus,
        "num_gpus": None,
        "object_store_bytes": settings.ray_object_store_bytes,
        "temp_dir": str(temp_dir / "r"),  # Ray opens its folder to everyone; the one around it stays ours
        "answer_file": str(answer),
    }
    with log.open("wb") as output:
        owner = subprocess.Popen(
            [sys.executable, "-m", "cluster.ray_head"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=home.root,
            env=_head_environment(home, settings, run_id),
            start_new_session=True,
        )
    run = RayRun(run_id=run_id, owner=ProcessMark.of(owner.pid), gcs_address="", temp_dir=temp_dir)
    begun(run)  # before the order is given, without which the process ends by itself
    if owner.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # it died already; the wait below says so
            owner.stdin.write(json.dumps(order).encode())
            owner.stdin.close()
    deadline = time.monotonic() + settings.start_timeout_s
    while not answer.exists():
        if owner.poll() is not None or time.monotonic() > deadline:
            end_run(run)
            raise StartFailed(
                f"Ray's head did not start. Its last words are in the installation's logs/{log.name}.",
                part="ray",
                exit_status=owner.poll(),
            )
        time.sleep(_POLL_S)
    return run.model_copy(update={"gcs_address": json.loads(answer.read_bytes())["gcs_address"]})


def processes_of(run_id: str) -> Iterator[psutil.Process]:
    """Living processes of this user that carry the run's id, the caller and its ancestors left out."""
    wanted = f"{RUN_VARIABLE}={run_id}".encode()
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        if process.pid in spared:
            continue
        # /proc is read directly: psutil parses the whole environment and we compare one entry
        with contextlib.suppress(OSError, psutil.Error):
            if wanted in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                yield process


def end_run(run: RayRun, grace_s: float = 2.0) -> int:
    """Ends every process of a run and removes its folder; safe to repeat, and after any crash.

    Args:
        run: the run to end.
        grace_s: how long the head may take to end by itself before it is killed.

    Returns:
        How many processes had to be killed.
    """
    owner = run.owner.process()
    if owner is not None:
        with contextlib.suppress(psutil.Error):
            owner.terminate()
            _await_end([owner], grace_s)
    killed: set[int] = set()
    # A dying parent may leave a child that was just being started; hence until none is found.
    for _ in range(20):
        left = list(processes_of(run.run_id))
        if not left:
            break
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
                killed.add(process.pid)
        _await_end(left, 2.0)
    if run.temp_dir.name.startswith(_TEMP_PREFIX):
        shutil.rmtree(run.temp_dir, ignore_errors=True)
    return len(killed)


_TEMP_PREFIX = "mkt-"


def _make_temp_dir(home: Home) -> Path:
    inside = home.root / "ray"
    if len(os.fsencode(inside)) + len(_TEMP_PREFIX) + 9 <= _LONGEST_TEMP_DIR:
        home.make_folder(inside)
        return Path(tempfile.mkdtemp(prefix=_TEMP_PREFIX, dir=inside))
    # mkdtemp: a fresh name with mode 0700, so nobody can have prepared the place
    return Path(tempfile.mkdtemp(prefix=_TEMP_PREFIX, dir="/tmp"))  # the path has to be short


def _head_environment(home: Home, settings: Settings, run_id: str) -> dict[str, str]:
    threads = str(settings.threads)
    ours = {
        RUN_VARIABLE: run_id,
        # else a process that renames itself writes its title over the place where the line above stands
        "SPT_NOENV": "1",
        "PYTHONPATH": str(Path(cluster.__file__).parents[1]),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "MALLOC_ARENA_MAX": "2",
    }
    return clean_environment() | ray_environment(home) | ours


def _await_end(processes: list[psutil.Process], timeout_s: float) -> None:
    # waits for children of ours as well as for strangers' children, reaping the former
    psutil.wait_procs(processes, timeout=timeout_s)

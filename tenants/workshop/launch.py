# SPDX-License-Identifier: Apache-2.0
"""Starts a training child inside the enclosure and says how well it is confined.

The caller is trusted platform code. The child inherits nothing but a clean environment, its pipes and the
work folder's lock. Knows neither Ray nor the office nor what training is; ``follower`` reads what the child
says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenants.errors import TenantsError
from tenants.workshop import enclosure
from tenants.workshop.protocol import MAX_LINE_BYTES

# Read by the dynamic loader, Python and torch at start; those that a machine lacks are left out.
_SYSTEM_READABLE = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
)
_SYSTEM_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


class EnclosureUnavailable(TenantsError):
    """The child could not be confined, so it was not started."""

    code = "enclosure_unavailable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """How well a child is confined, in the words shown to the owner.

    Attributes:
        name: ``enclosed``, or ``weaker`` when a wall is missing.
        missing: the missing walls, one phrase each.
    """

    name: str
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name if not self.missing else f"{self.name}: {', '.join(self.missing)}"

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Grade:
        """The grade that an enclosure's own report amounts to."""
        missing = []
        if not report.get("own_uid"):
            missing.append("no own uid")
        if not (report.get("seccomp") or report.get("own_network")):
            missing.append("network closed for TCP only")
        if int(report.get("landlock_abi", 0)) < 6:
            missing.append("signals to processes of the same user possible")
        return cls(name="weaker" if missing else "enclosed", missing=tuple(missing))


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What a child may use at most.

    Attributes:
        memory_bytes: address space; None for no bound (CUDA maps far more than it uses).
        file_bytes: largest file.
        folder_bytes: whole work folder, looked at every few seconds.
        seconds: wall time of one attempt; None for no bound.
        open_files: descriptors.
        stop_grace_s: time between SIGTERM and SIGKILL.
    """

    memory_bytes: int | None = 16 * 2**30
    file_bytes: int = 8 * 2**30
    folder_bytes: int = 32 * 2**30
    seconds: float | None = None
    open_files: int = 1024
    stop_grace_s: float = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildOrder:
    """What to start and what it may touch.

    Attributes:
        command: absolute program and arguments.
        readable: files and folders it may read and execute, beyond what a Python needs.
        writable: folders it may change.
        directory: where it starts.
        environment: its whole environment.
        uid: its own uid, or None to keep the platform's.
        bounds: limits.
        devices: device files beyond the harmless ones.
        keep_open: descriptors it inherits (the work folder's lock).
    """

    command: tuple[str, ...]
    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    directory: Path
    environment: Mapping[str, str]
    uid: int | None = None
    bounds: Bounds = field(default_factory=Bounds)
    devices: tuple[Path, ...] = ()
    keep_open: tuple[int, ...] = ()


def python_readable() -> tuple[Path, ...]:
    """Folders that this interpreter and its installed packages live in."""
    roots = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent}
    return tuple(sorted(root for root in roots if root.exists()))


def own_uid(tenant: str, must_reach: Sequence[Path]) -> int | None:
    """A uid of its own for a tenant's children, or None where this process cannot give one.

    Needs root, and every path must be reachable for a stranger's uid: a home below ``/root`` is not.
    """
    if os.geteuid() != 0:
        return None
    for path in must_reach:
        for place in [path.resolve(), *path.resolve().parents]:
            needed = 0o5 if place == path.resolve() else 0o1
            if place.stat().st_mode & needed != needed:
                return None
    return 1_900_000_000 + int.from_bytes(hashlib.sha256(tenant.encode()).digest()[:3], "big")


def clean_environment(work: Path, *, site: Path | None, threads: int) -> dict[str, str]:
    """The child's whole environment: nothing is inherited, hence no token and no secret."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(work),
        "TMPDIR": str(work),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    return environment


class EnclosedChild:
    """One child process.

    Start it from a thread that lives as long as the child does: the kernel kills the child when the thread
    that started it ends.
    """

    def __init__(self, order: ChildOrder, stderr_file: Path) -> None:
        self._order = order
        self._stderr_file = stderr_file
        self._process: subprocess.Popen[bytes] | None = None
        self.grade = Grade(name="weaker", missing=("not started",))

    @property
    def pid(self) -> int | None:
        """Process id once started."""
        return None if self._process is None else self._process.pid

    def start(self, first_line: bytes) -> Grade:
        """Starts the child and hands it its job line.

        Raises:
            EnclosureUnavailable: a wall could not be raised; nothing of the command has run.
        """
        policy_read, policy_write = os.pipe()
        report_read, report_write = os.pipe()
        launcher = str(Path(enclosure.__file__).resolve())
        argv = [sys.executable, "-I", "-S", launcher, str(policy_read), str(report_write)]
        with self._stderr_file.open("ab") as stderr:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={"PATH": "/usr/bin:/bin"},
                pass_fds=(policy_read, report_write, *self._order.keep_open),
                start_new_session=True,
            )
        os.close(policy_read)
        os.close(report_write)
        with os.fdopen(policy_write, "wb") as sink, os.fdopen(report_read, "rb") as source:
            try:
                sink.write(json.dumps(self._policy()).encode())
                sink.close()
                report = json.loads(source.readline(MAX_LINE_BYTES) or b'{"failed": "no report"}')
            except (OSError, ValueError) as err:
                report = {"failed": type(err).__name__}
        if "failed" in report:
            self.end()
            raise EnclosureUnavailable(
                "The training child could not be confined and was not started; see the workshop's "
                "requirements (Linux with Landlock).",
                reason=str(report["failed"])[:200],
            )
        self.grade = Grade.of(report)
        stdin = self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it ended already; the follower says how
            if stdin is not None:
                stdin.write(first_line)
                stdin.close()
        return self.grade

    def signal(self, number: int) -> None:
        """Sends a signal to the child and everything it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The started process.

        Raises:
            EnclosureUnavailable: before ``start``.
        """
        if self._process is None:
            raise EnclosureUnavailable("The training child was not started; start it first.")
        return self._process

    @property
    def order(self) -> ChildOrder:
        """What was started."""
        return self._order

    def end(self) -> int:
        """Kills the child and everything it started; returns its exit status."""
        self.signal(signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        return self.process.wait()

    def _policy(self) -> dict[str, Any]:
        order = self._order
        bounds = {"CORE": 0, "FSIZE": order.bounds.file_bytes, "NOFILE": order.bounds.open_files}
        if order.bounds.memory_bytes is not None:
            bounds["AS"] = order.bounds.memory_bytes
        if order.uid is not None:
            bounds["NPROC"] = 256  # counted per uid, so only an own uid can have its own bound
        readable = [*python_readable(), *order.readable]
        return {
            "parent_pid": os.getpid(),
            "uid": order.uid,
            "bounds": bounds,
            "directory": str(order.directory),
            "readable": [str(path) for path in readable] + [p for p in _SYSTEM_READABLE if Path(p).exists()],
            "writable": [str(path) for path in order.writable],
            "devices": [p for p in _SYSTEM_DEVICES if Path(p).exists()] + [str(p) for p in order.devices],
            "environment": dict(order.environment),
            "command": list(order.command),
        }

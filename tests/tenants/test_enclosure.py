# SPDX-License-Identifier: Apache-2.0
"""Law 12: a training child reads its dataset and the base, writes its own folder, and nothing else."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tenants.workshop import enclosure
from tenants.workshop.follower import ChildExit, Follower
from tenants.workshop.launch import (
    Bounds,
    ChildOrder,
    EnclosedChild,
    EnclosureUnavailable,
    Grade,
    clean_environment,
)
from tenants.workshop.protocol import ChildEvent, MetricEvent, PhaseEvent

pytestmark = pytest.mark.skipif(enclosure.landlock_abi() < 1, reason="this kernel has no Landlock")

SAY = """
import json, os, sys
def say(**k): print(json.dumps(k), flush=True)
spec = json.loads(sys.stdin.readline())
"""


class Yard:
    """A job's folder, another tenant's file and a token file, side by side."""

    def __init__(self, root: Path) -> None:
        self.work = root / "mine" / "work"
        self.work.mkdir(parents=True)
        self.data = root / "mine" / "data.jsonl"
        self.data.write_text('{"text": "mine"}\n')
        self.theirs = root / "theirs" / "data.jsonl"
        self.theirs.parent.mkdir()
        self.theirs.write_text('{"text": "theirs"}\n')
        self.token = root / "token"
        self.token.write_text("secret")
        self.events: list[ChildEvent] = []
        self.grade = Grade(name="weaker")

    def run(
        self,
        code: str,
        *,
        bounds: Bounds | None = None,
        uid: int | None = None,
        stop_after: str = "",
        **spec: object,
    ) -> ChildExit:
        """Runs Python code in the enclosure and follows it to its end."""
        order = ChildOrder(
            command=(sys.executable, "-I", "-c", SAY + code),
            readable=(self.data,),
            writable=(self.work,),
            directory=self.work,
            environment=clean_environment(self.work, site=None, threads=1),
            bounds=bounds or Bounds(stop_grace_s=5.0),
            uid=uid,
        )
        child = EnclosedChild(order, self.work.parent / "stderr.log")
        self.grade = child.start(json.dumps(spec).encode() + b"\n")
        names: set[str] = set()

        def take(event: ChildEvent) -> None:
            self.events.append(event)
            if isinstance(event, PhaseEvent):
                names.add(event.name)

        return Follower(child, take, lambda: stop_after in names).run()

    def metrics(self) -> dict[str, float]:
        """Metric values by name."""
        return {event.name: event.value for event in self.events if isinstance(event, MetricEvent)}


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    """A fresh yard."""
    return Yard(tmp_path)


TRY = """
def attempt(name, act):
    try:
        act(); value = 0
    except OSError as err:
        value = err.errno or 1
    except Exception:
        value = -1
    say(kind="metric", step=0, name=name, value=value)
"""


def test_child_reads_its_data_and_writes_its_folder_and_nothing_else(yard: Yard) -> None:
    """Own data and folder work; another tenant's file, the token, the parent and the outside are denied."""
    code = (
        TRY
        + """
attempt("own_read", lambda: open(spec["data"]).read())
attempt("own_write", lambda: open(spec["work"] + "/x", "w").write("y"))
attempt("own_data_write", lambda: open(spec["data"], "a").write("y"))
attempt("theirs", lambda: open(spec["theirs"]).read())
attempt("token", lambda: open(spec["token"]).read())
attempt("outside", lambda: open(spec["outside"], "w").write("y"))
attempt("listing", lambda: os.listdir(os.path.dirname(spec["theirs"])))
attempt("parent_environment", lambda: open(f"/proc/{os.getppid()}/environ").read())
link = spec["work"] + "/l"
attempt("link_out", lambda: (os.symlink(spec["theirs"], link), open(link).read()))
attempt("hard_link_in", lambda: os.link(spec["theirs"], spec["work"] + "/h"))
attempt("signal_parent", lambda: os.kill(os.getppid(), 0))
attempt("new_session", lambda: os.setsid())
say(kind="done")
"""
    )
    result = yard.run(
        code,
        data=str(yard.data),
        work=str(yard.work),
        theirs=str(yard.theirs),
        token=str(yard.token),
        outside=str(yard.work.parent / "escape"),
    )
    assert result.succeeded, (yard.work.parent / "stderr.log").read_text()
    got = yard.metrics()
    allowed = {"own_read", "own_write"}
    assert {name for name, value in got.items() if value == 0} == allowed
    assert len(got) == 12
    assert not (yard.work.parent / "escape").exists()
    assert yard.data.read_text() == '{"text": "mine"}\n'


def test_child_has_no_network_and_a_clean_environment(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket of any family opens, and no variable of the platform arrives."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary-token")
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = (
            TRY
            + """
import socket
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", spec["port"]), timeout=2))
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)))
attempt("unix", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
say(kind="metric", step=0, name="canaries", value=sum("canary" in v for v in os.environ.values()))
say(kind="metric", step=0, name="ray", value=sum(k.startswith("RAY") for k in os.environ))
say(kind="done")
"""
        )
        result = yard.run(code, port=server.getsockname()[1])
    assert result.succeeded
    got = yard.metrics()
    assert got["canaries"] == got["ray"] == 0
    assert all(got[name] != 0 for name in ("tcp", "udp", "unix"))


def test_child_keeps_no_capability(yard: Yard) -> None:
    """Effective, permitted and bounding capabilities are empty, and no new privilege can be gained."""
    code = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
    say(kind="metric", step=0, name=name, value=int(status[name], 16))
say(kind="metric", step=0, name="privs", value=int(status["NoNewPrivs"]))
say(kind="done")
"""
    assert yard.run(code).succeeded
    got = yard.metrics()
    assert got.pop("privs") == 1
    if os.geteuid() != 0:
        got.pop("CapBnd")  # only root may shrink it; without it nothing can be regained either (no_new_privs)
    assert set(got.values()) == {0.0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a child its own uid")
def test_own_uid_is_taken_and_reported(yard: Yard) -> None:
    """With an own uid the grade no longer names it as missing."""
    order = ChildOrder(
        command=("/usr/bin/id", "-u"),
        readable=(Path("/usr/bin"),),
        writable=(),
        directory=Path("/"),
        environment={},
        uid=1_900_000_007,
    )
    child = EnclosedChild(order, yard.work / "stderr.log")
    grade = child.start(b"\n")
    stdout = child.process.stdout
    assert stdout is not None
    assert stdout.read() == b"1900000007\n"
    child.process.wait(timeout=30)  # its pipe closes a moment before it ends
    assert child.end() == 0
    assert "no own uid" not in grade.missing


def test_grade_says_what_is_missing(yard: Yard) -> None:
    """Without an own uid the grade is weaker and says so."""
    assert yard.run('say(kind="done")\n').succeeded
    assert yard.grade.name == "weaker"
    assert "no own uid" in str(yard.grade)


def test_missing_path_of_a_policy_starts_nothing(yard: Yard) -> None:
    """A typing mistake in a policy is an error, never a stricter or looser policy."""
    order = ChildOrder(
        command=(sys.executable, "-c", "open('ran', 'w')"),
        readable=(yard.work / "no-such-file",),
        writable=(yard.work,),
        directory=yard.work,
        environment={},
    )
    with pytest.raises(EnclosureUnavailable):
        EnclosedChild(order, yard.work / "stderr.log").start(b"\n")
    assert not (yard.work / "ran").exists()


def test_memory_and_file_bounds_hold(yard: Yard) -> None:
    """An allocation and a file beyond their bounds fail."""
    code = (
        TRY
        + """
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
attempt("memory", lambda: bytearray(2 * 2**30))
attempt("file", lambda: open(spec["work"] + "/big", "wb", buffering=0).write(b"x" * 2**20) < 2**20 and 1 / 0)
say(kind="done")
"""
    )
    bounds = Bounds(memory_bytes=2**30, file_bytes=2**16)
    assert yard.run(code, bounds=bounds, work=str(yard.work)).succeeded
    assert all(value != 0 for value in yard.metrics().values())
    assert (yard.work / "big").stat().st_size <= 2**16


def test_asked_to_stop_the_child_gets_time_for_a_checkpoint(yard: Yard) -> None:
    """SIGTERM first; exit status 3 and the checkpoint tell that it was orderly."""
    code = """
import signal, time
def stop(*_):
    open(spec["work"] + "/checkpoint", "w").write("step 7"); os._exit(3)
signal.signal(signal.SIGTERM, stop)
say(kind="phase", name="train")
time.sleep(60)
"""
    result = yard.run(code, stop_after="train", work=str(yard.work))
    assert (result.status, result.stopped, result.error) == (3, True, None)
    assert (yard.work / "checkpoint").read_text() == "step 7"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('not json', flush=True)\n", "workshop_protocol_violated"),
        ("print('x' * 200_000, flush=True)\nimport time; time.sleep(60)\n", "workshop_protocol_violated"),
        ("say(kind='metric', step=1, name='loss', value='NaN')\n", "workshop_protocol_violated"),
        ("say(kind='metric', step=1, name='../../etc', value=1)\n", "workshop_protocol_violated"),
        ("say(kind='done')\nsay(kind='done')\n", "workshop_protocol_violated"),
        ("pass\n", "no_result"),
        ("os.kill(os.getpid(), 9)\n", "child_died"),
        ("import time; time.sleep(60)\n", "time_bound"),
    ],
)
def test_rule_breakers_are_ended(yard: Yard, code: str, expected: str) -> None:
    """Whatever the child does wrong ends its attempt with a code, and never succeeds."""
    result = yard.run(code, bounds=Bounds(seconds=1.0) if expected == "time_bound" else None)
    assert not result.succeeded
    assert result.error is not None
    assert result.error.code == expected


def test_child_dies_with_the_thread_that_started_it(yard: Yard) -> None:
    """Nobody follows it any more, so it is killed."""
    order = ChildOrder(
        command=(sys.executable, "-I", "-c", "import time; time.sleep(60)"),
        readable=(),
        writable=(yard.work,),
        directory=yard.work,
        environment={},
    )
    child = EnclosedChild(order, yard.work / "stderr.log")
    thread = threading.Thread(target=lambda: child.start(b"\n"))
    thread.start()
    thread.join()
    assert child.process.wait(timeout=10) == -9


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    """Every test ends its children itself; those of other tests' libraries are not its own."""
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) - before == set()

# SPDX-License-Identifier: Apache-2.0
"""The README's session, run from top to bottom against a real marketplace with a tiny base."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.client import MarketplaceClient
from cluster.doors import Answer, OpenDoor, knock, open_doors
from cluster.ray_node import processes_of
from examples.chaos.tiny_base import make_base

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(?P<kind>sh|python)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
CANARY = "zyxomma-petiolatum-canary-5521"

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


class Shell:
    """One bash that keeps its variables between blocks and stops at the first command that fails."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=environment,
        )
        self.run("set -euo pipefail")

    def run(self, block: str) -> str:
        """Runs a block; returns what it printed."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{block}\necho\necho @@done@@\n")
        self._bash.stdin.flush()
        said: list[str] = []
        for line in self._bash.stdout:
            if line.strip() == "@@done@@":
                return "".join(said)
            said.append(line)
        raise AssertionError(f"The block failed:\n{block}\n--- it printed:\n{''.join(said)[-3000:]}")

    def close(self) -> None:
        """Ends the shell."""
        self._bash.kill()
        self._bash.wait()


def blocks() -> list[tuple[str, str]]:
    """The README's executable blocks in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [(found["kind"], found["text"]) for found in BLOCK.finditer(text)]


@dataclass
class Session:
    """What running the README showed.

    Attributes:
        printed: by each block.
        leaks: files in which the canary was found.
        doors: every listening socket while a model host was answering, with what it said to a stranger.
        processes: command lines that ran then.
        port: the gateway's.
    """

    printed: list[str] = field(default_factory=list)
    leaks: list[Path] = field(default_factory=list)
    doors: list[tuple[OpenDoor, list[Answer]]] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    port: int = 0


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """Runs every block of the README, and looks around while its model host is live."""
    folder = Path(tempfile.mkdtemp(prefix="readme-"))  # short: Ray puts sockets below it
    make_base(folder / "base", folder / "scratch")
    notes = [{"id": f"note-{n}", "text": f"The patient of bed {n} slept well. " * 12} for n in range(40)]
    (folder / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MARKETPLACE_")}
    environment = clean | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MARKETPLACE_HOME": str(folder / "home"),
        "MARKETPLACE_HTTP_PORT": str(port),
        "MARKETPLACE_KERNELS_FOLDER": str(Path(__file__).parents[2] / "build" / "kernels"),
        "MARKETPLACE_STARTER_BASE": str(folder / "base"),
    }
    shell = Shell(folder, environment)
    seen = Session(port=port)
    try:
        for kind, text in blocks():
            if kind == "python":
                (folder / "example.py").write_text(text)
                seen.printed.append(shell.run(f"MARKETPLACE_URL=http://127.0.0.1:{port} python example.py"))
                key = shell.run("echo $MARKETPLACE_KEY").strip()
                seen.leaks = ask_and_search(f"http://127.0.0.1:{port}", key, folder / "home")
                look_at_doors(seen, folder / "home")
            else:
                seen.printed.append(shell.run(text))
        yield seen
    finally:
        shell.close()
        subprocess.run(
            [sys.executable, "-m", "cluster.cli.main", "down"],
            env=environment,
            capture_output=True,
            check=False,
        )


def look_at_doors(seen: Session, home: Path) -> None:
    """Knocks at every door of the running marketplace without a key."""
    run_id = str(json.loads((home / "run.json").read_text())["ray"]["run_id"])
    seen.processes = [" ".join(process.cmdline()) for process in processes_of(run_id)]
    doors = list(open_doors(run_id))
    with ThreadPoolExecutor(16) as hands:  # a silent door costs its patience; they are silent together
        answers = hands.map(lambda door: knock(door, timeout_s=3.0), doors)
        seen.doors = list(zip(doors, answers, strict=True))


def ask_and_search(url: str, key: str, home: Path) -> list[Path]:
    """Sends the canary through every door that takes prompts, then looks for it in every file of the home."""
    body = {"model": "notes-desk", "prompt": f"{CANARY} and", "max_tokens": 4}
    chat = {"model": "notes-desk", "messages": [{"role": "user", "content": CANARY}], "max_tokens": 4}
    with MarketplaceClient(url=url, key=key) as client:
        client.post("/v1/completions", body)
        client.post("/v1/chat/completions", chat)
        assert list(client.stream("/v1/completions", body | {"stream": True}))
        client.post("/api/v1/deployments/notes-desk/score", {"texts": [CANARY]})
        client.post("/api/v1/deployments/notes-desk/probe", {"text": CANARY})
    needle = CANARY.encode()
    return [
        path
        for path in home.rglob("*")
        if path.is_file() and not path.is_symlink() and needle in path.read_bytes()
    ]


def test_every_block_of_the_readme_runs(session: Session) -> None:
    """Every block of the README runs as it stands."""
    assert len(session.printed) == len(blocks())


def test_the_data_card_carries_the_license_of_the_documents(session: Session) -> None:
    """What the owner said of the documents stands on the expert's card."""
    training = next(
        text for (_, block), text in zip(blocks(), session.printed, strict=True) if "job submit" in block
    )
    assert '"license": "CC-BY-4.0"' in training


def test_the_reason_is_shown_after_the_withdrawal(session: Session) -> None:
    """The deployment says that the expert is out because consent was withdrawn."""
    leaving = next(
        text for (_, block), text in zip(blocks(), session.printed, strict=True) if "withdraw" in block
    )
    assert '"consent_withdrawn"' in leaving


def test_what_was_stopped_is_out_and_the_evidence_of_its_return_holds(session: Session) -> None:
    """The stop leaves the endpoint without members, and the pack made after the way back verifies."""
    stopping = next(
        text for (_, block), text in zip(blocks(), session.printed, strict=True) if "stop create" in block
    )
    assert '"members": []' in stopping
    assert "Every file, signature and proof holds." in stopping


def test_a_canary_prompt_is_found_nowhere(session: Session) -> None:
    """Prompts are on no disk: not in the database, the journals, the logs or Ray's folders (law 18)."""
    assert session.leaks == []


def test_nothing_answers_a_stranger_while_a_model_host_serves(session: Session) -> None:
    """With a model host live, all listen on loopback, and only the gateway and Ray's refusals answer."""
    assert any("ServeReplica" in line and "host" in line for line in session.processes)
    assert len(session.doors) >= 8
    for door, answers in session.doors:
        assert door.on_loopback, door
        for answer in answers:
            assert answer.protocol == "http", (door, answer)
            assert door.port == session.port or answer.code == "401", (door, answer)

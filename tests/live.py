# SPDX-License-Identifier: Apache-2.0
"""The one marketplace that runs for the tests of a session, from the first that wants it to the last.

Knows nothing of what is tried on it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class LiveMarketplace:
    """A whole marketplace in processes of its own, driven through its command line.

    Tests that kill parts of it MUST bring it ``up`` again before they end; the address stays the same.

    Attributes:
        home: its home folder.
        url: where its gateway answers.
        awaited: how many tests are still to use it.
    """

    #: Exported in the shell that starts it; no process of the marketplace may know it.
    SHELL_SECRET = "canary-of-the-operators-shell"

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.home = home
        self.url = f"http://127.0.0.1:{port}"
        self.awaited = 0
        choices = {
            "HOME": str(home),
            "HTTP_PORT": str(port),
            "START_TIMEOUT_S": "180",
            "KERNELS_FOLDER": str(Path(__file__).parents[1] / "build" / "kernels"),
        }
        self._environment = {
            **os.environ,
            **{f"MARKETPLACE_{name}": value for name, value in choices.items()},
            "AWS_SECRET_ACCESS_KEY": self.SHELL_SECRET,
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }

    @property
    def operator_key(self) -> str:
        """The first operator's API key."""
        return (self.home / "operator.key").read_text().strip()

    @property
    def run_id(self) -> str:
        """What every process of the present run carries in its environment."""
        return str(json.loads((self.home / "run.json").read_text())["ray"]["run_id"])

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs ``marketplace <arguments>`` and fails the test with its words if it fails."""
        done = subprocess.run(
            [sys.executable, "-c", "from cluster.cli.main import main; main()", *arguments],
            env=self._environment,
            cwd=self.home.parent,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert not check or done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stderr}"
        return done

    def up(self) -> dict[str, Any]:
        """Brings it up, or up again, and answers what the command said."""
        said: dict[str, Any] = json.loads(self.command("--json", "up").stdout)
        return said


_LIVE = pytest.StashKey[LiveMarketplace]()


@pytest.fixture(scope="session")
def marketplace(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveMarketplace]:
    """The session's running marketplace, with the starter base if the checkout has one."""
    live = LiveMarketplace(tmp_path_factory.mktemp("live") / "home")
    live.awaited = sum(_uses_marketplace(item) for item in request.session.items)
    request.session.stash[_LIVE] = live
    try:
        live.up()
        yield live
    finally:
        del request.session.stash[_LIVE]
        if live.awaited:
            live.command("down", check=False)


def _uses_marketplace(item: pytest.Item) -> bool:
    return "marketplace" in getattr(item, "fixturenames", ())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Ends the marketplace after the last test that uses it, for its polling would slow all others."""
    yield
    live = item.session.stash.get(_LIVE, None)
    if live is not None and _uses_marketplace(item):
        live.awaited -= 1
        if not live.awaited:
            live.command("down")

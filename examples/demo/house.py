# SPDX-License-Identifier: Apache-2.0
"""Brings a marketplace up and down through its own command, as an operator does."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cluster.client import MarketplaceClient


class HouseFailed(RuntimeError):
    """The command did not succeed; its output is the message."""


@dataclass(frozen=True, kw_only=True)
class House:
    """One installation in a folder of its own.

    Attributes:
        home: the installation's folder.
        port: where its gateway listens.
        settings: further ``MARKETPLACE_*`` settings by their lower-case name.
    """

    home: Path
    port: int
    settings: dict[str, str]

    @property
    def url(self) -> str:
        """Address of the gateway."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """The environment of a command that speaks of this installation."""
        own = {f"MARKETPLACE_{name.upper()}": value for name, value in self.settings.items()}
        own |= {
            "MARKETPLACE_HOME": str(self.home),
            "MARKETPLACE_HTTP_PORT": str(self.port),
            "MARKETPLACE_KERNELS_FOLDER": str(Path.cwd() / "build" / "kernels"),
        }
        return {
            name: value for name, value in os.environ.items() if not name.startswith("MARKETPLACE_")
        } | own

    def command(self, *words: str, quiet: bool = False) -> str:
        """Runs ``marketplace <words>``; returns what it printed.

        Raises:
            HouseFailed: it exited with an error.
        """
        done = subprocess.run(
            [sys.executable, "-m", "cluster.cli.main", *words],
            env=self.environment(),
            stdout=subprocess.PIPE if quiet else None,
            stderr=subprocess.PIPE if quiet else None,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stdout or "") + (done.stderr or "")
            raise HouseFailed(f"`marketplace {' '.join(words)}` failed with {done.returncode}. {said}")
        return done.stdout or ""

    def operator_key(self) -> str:
        """The key that the first start wrote."""
        return (self.home / "operator.key").read_text().strip()

    def client(self, key: str | None, *, timeout_s: float = 120.0) -> MarketplaceClient:
        """A client with somebody's key."""
        return MarketplaceClient(url=self.url, key=key, timeout_s=timeout_s)

# SPDX-License-Identifier: Apache-2.0
"""The real service with watched hosts: Ray, Serve, gateway and replicas in processes of their own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import psutil

from cluster.home import Home
from cluster.ray_node import processes_of
from cluster.run_file import RunFile
from examples.demo.house import House, HouseFailed
from examples.storm.hosts import Orders

#: Where compiled kernels are kept from run to run, since compiling takes a while.
KERNELS = Path(__file__).resolve().parents[2] / "build" / "kernels"
_HOST = "WatchedHost"


class ServedHouse(House):
    """One installation whose hosts are watched; the home must have been founded."""

    def watched_up(self, orders: Orders) -> float:
        """Brings it up; the seconds that it took.

        Args:
            orders: what is played with the hosts.

        Raises:
            HouseFailed: it did not come up.
        """
        began = time.monotonic()
        orders.save(self.home)
        done = subprocess.run(
            [sys.executable, "-m", "examples.storm.up"],
            env=self.environment() | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise HouseFailed(f"It does not come up. {done.stdout}{done.stderr}")
        return time.monotonic() - began

    def down(self) -> None:
        """Takes it down, if it is up."""
        with contextlib.suppress(HouseFailed):
            self.command("down", quiet=True)

    def hosts(self) -> list[psutil.Process]:
        """Processes of the model hosts' replicas, by their numbers."""
        run = RunFile.model_validate(Home(self.home).read_run() or {}).ray
        found = []
        for process in processes_of(run.run_id) if run else ():
            try:
                if _HOST in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return sorted(found, key=lambda one: one.pid)

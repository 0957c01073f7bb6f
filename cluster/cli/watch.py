# SPDX-License-Identifier: Apache-2.0
"""``marketplace job watch``: follows a training job until it ends."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.cli.context import Door

_ENDED = frozenset({"succeeded", "failed", "cancelled"})
_POLL_S = 1.0


@click.command()
@click.argument("job_id")
@click.pass_obj
def watch(door: Door, job_id: str) -> None:
    """Follow a job until it ends; the exit code is 0 only if it succeeded.

    \b
    Example:
      marketplace job watch job_0198f0c2a1b37c4e8d5f60718293a4b5
    """  # noqa: D301  (\b is click's own mark for text to leave as it is)
    quiet = door.as_json or door.only is not None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
    )
    with door.client() as client, Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        bar = progress.add_task(job_id[:12], total=100, said="")
        while True:
            job = client.call("jobs.show", job_id=job_id)
            progress.update(bar, completed=_percent(job), said=f"{job['state']} {job['message']}"[:70])
            if job["state"] in _ENDED:
                break
            time.sleep(_POLL_S)
    door.show(job)
    sys.exit(0 if job["state"] == "succeeded" else 1)


def _percent(job: dict[str, Any]) -> float:
    if job["state"] in _ENDED:
        return 100.0
    found = re.search(r"(\d+) of (\d+)", str(job["message"]))
    return 100.0 * int(found[1]) / max(1, int(found[2])) if found else 0.0

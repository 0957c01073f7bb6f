# SPDX-License-Identifier: Apache-2.0
"""``up``, ``down``, ``status`` and ``doctor``: the commands that do not go through HTTP."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator

import click
import psutil
from rich.console import Console
from rich.table import Table

from cluster.cli.context import Door
from cluster.errors import NotRunning

_LEAST_MEMORY_BYTES = 4 * 2**30
_LEAST_DISK_BYTES = 2 * 2**30


@click.command()
@click.pass_obj
def up(door: Door) -> None:
    """Start the marketplace, or bring it up again after a crash.

    Nothing is lost by a crash: jobs resume, and usage that was journaled is counted once.

    \b
    Example:
      MARKETPLACE_HOME=~/market marketplace up
    """  # noqa: D301  (\b is click's own mark for text to leave as it is)
    from cluster.up import bring_up

    running = bring_up(door.settings, _say(door))
    if door.as_json:
        click.echo(running.model_dump_json(indent=2))
        return
    if running.fresh:
        click.echo(
            f"  The operator's key is in {door.home.operator_key}; this command line uses it by itself."
        )
        click.echo(f"  Console: {running.url}/    OpenAI API: {running.url}/v1")


@click.command()
@click.pass_obj
def down(door: Door) -> None:
    """Stop everything that `up` started; data stays where it is."""
    from cluster.up import take_down

    if not take_down(door.settings, _say(door)):
        raise NotRunning("No marketplace runs from this home, so there is nothing to stop.")


@click.command()
@click.pass_obj
def status(door: Door) -> None:
    """Say what runs and how it is."""
    from cluster.status import status as look

    report = look(door.settings)
    if door.as_json:
        click.echo(report.model_dump_json(indent=2))
    else:
        table = Table(show_header=False, box=None)
        for part in report.parts:
            table.add_row(part.part, part.state, part.detail)
        Console().print(table)
    if report.running:
        with door.client() as client:
            door.show(client.call("status.show"))
    sys.exit(0 if report.running else 7)


@click.command()
@click.pass_obj
def doctor(door: Door) -> None:
    """Check that this machine can run the marketplace, and say what to do where it cannot."""
    findings = [(name, *check) for name, check in _checks(door)]
    if door.as_json:
        click.echo(json.dumps([{"check": n, "ok": ok, "said": said} for n, ok, said in findings], indent=2))
    else:
        table = Table(show_header=False, box=None)
        for name, ok, said in findings:
            table.add_row("ok" if ok else "NOT OK", name, said)
        Console().print(table)
    sys.exit(0 if all(ok for _, ok, _ in findings) else 1)


def _say(door: Door) -> Callable[[str], None]:
    return (lambda _line: None) if door.as_json else (lambda line: click.echo(f"  {line}"))


def _checks(door: Door) -> Iterator[tuple[str, tuple[bool, str]]]:
    yield "Python", (sys.version_info >= (3, 11), sys.version.split()[0])
    free = psutil.virtual_memory().available
    yield "memory", (free >= _LEAST_MEMORY_BYTES, f"{free / 2**30:.1f} GiB free, 4 are wanted")
    home = door.settings.home
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    disk = shutil.disk_usage(place).free
    yield "disk", (disk >= _LEAST_DISK_BYTES, f"{disk / 2**30:.1f} GiB free at {place}, 2 are wanted")
    yield "enclosure", _enclosure()
    yield (
        "binding",
        (
            door.settings.loopback_only,
            f"the gateway binds {door.settings.http_host}; beyond loopback, put TLS in front of it",
        ),
    )


def _enclosure() -> tuple[bool, str]:
    from tenants.workshop.enclosure import landlock_abi

    abi = landlock_abi()
    if abi < 1:
        return (
            False,
            "this kernel has no Landlock; training children would not be locked in (Linux 5.13 or newer)",
        )
    return True, f"Landlock ABI {abi}: training children are locked into their own folders"

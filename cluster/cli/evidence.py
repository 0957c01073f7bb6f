# SPDX-License-Identifier: Apache-2.0
"""Evidence packs as folders: ``deployment evidence`` makes one, the verbs of ``evidence`` need no server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cluster.cli.context import Door

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("evidence")
@click.argument("name")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder on this machine.")
@click.option("--epoch", type=int, help="As of this epoch; the current one if left out.")
@click.pass_obj
def make(door: Door, /, *, name: str, out: Path, epoch: int | None) -> None:
    """Write the evidence for deployment NAME: bill of materials, consents, decisions, proofs, summaries.

    \b
    Allowed to: auditor, compliance and operator of the platform.

    \b
    Example:
      marketplace deployment evidence research-desk --out ./evidence
    """  # noqa: D301  (\b is click's own mark for text to leave as it is)
    if out.exists():
        raise click.UsageError(f"{out} exists; name a new folder.")
    asked: dict[str, Any] = {"name": name} if epoch is None else {"name": name, "epoch": epoch}
    with door.client(timeout_s=300.0) as client:
        pack = client.call("deployments.evidence", **asked)
    out.mkdir(parents=True, mode=0o700)
    for file, text in pack["files"].items():
        (out / Path(file).name).write_text(text, encoding="utf-8")
    shown = {key: pack[key] for key in ("deployment", "epoch", "composition_digest", "public_key")}
    door.show({"folder": str(out), "files": len(pack["files"]), **shown})


@click.group("evidence")
def evidence() -> None:
    """Verify and compare evidence packs, without a marketplace."""


@evidence.command("verify")
@click.argument("folder", type=_FOLDER)
@click.option(
    "--public-key", "keys", multiple=True, help="The platform's key, 64 hex digits; repeat for several."
)
@click.pass_obj
def verify(door: Door, /, *, folder: Path, keys: tuple[str, ...]) -> None:
    """Check every file, signature and proof in FOLDER.

    \b
    Example:
      marketplace evidence verify ./evidence --public-key 8f3a…
    """  # noqa: D301  (\b is click's own mark for text to leave as it is)
    from policy.evidence.pack import verify_pack

    report = verify_pack(folder, set(keys)).model_dump(mode="json")
    door.show(report)
    sys.exit(0 if report["ok"] else 1)


@evidence.command("diff")
@click.argument("old", type=_FOLDER)
@click.argument("new", type=_FOLDER)
@click.pass_obj
def diff(door: Door, /, *, old: Path, new: Path) -> None:
    """Say which components came, went or changed between two packs of a deployment.

    \b
    Example:
      marketplace evidence diff ./evidence-41 ./evidence-42
    """  # noqa: D301  (\b is click's own mark for text to leave as it is)
    from policy.evidence.pack import compare_packs

    door.show(compare_packs(old, new))

# SPDX-License-Identifier: Apache-2.0
"""``marketplace audit verify BUNDLE`` and ``audit export``: what a table of operations cannot say.

Verifying a bundle asks nobody: no marketplace, no database, no network.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from cluster.cli.context import Door
from cluster.cli.values import JsonText


@click.command("verify")
@click.argument("bundle", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--checkpoint",
    "anchors",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A checkpoint file that you kept from before; repeat for several.",
)
@click.option("--public-key", "keys", multiple=True, help="Trust checkpoints of this key, 64 hex digits.")
@click.option(
    "--checkpoints", "documents", type=JsonText(), help="Documents of audit.checkpoint, as JSON or @file."
)
@click.pass_obj
def verify(
    door: Door,
    /,
    *,
    bundle: Path | None,
    anchors: tuple[Path, ...],
    keys: tuple[str, ...],
    documents: Any,
) -> None:
    """Check the audit chain and every stored row; of BUNDLE offline, or of the running marketplace.

    Names the first record that does not hold and says what is wrong with it. Without a checkpoint from
    before, records that were cut off at the end cannot be missed, and the answer says so.

    \b
    Example:
      marketplace audit verify ./audit-bundle --checkpoint ./2026-11-01.txt
    """  # noqa: D301  (\b is click's own mark for text to leave as it is)
    if bundle is None:
        if anchors or keys:
            raise click.UsageError("--checkpoint and --public-key need a BUNDLE; send --checkpoints instead.")
        kept = documents if isinstance(documents, list | None) else [documents]
        with door.client() as client:
            report = client.call("audit.verify", checkpoints=kept or [])
    else:
        from policy.audit.bundle import verify_bundle

        texts = [anchor.read_text(encoding="utf-8") for anchor in anchors]
        report = verify_bundle(bundle, texts, set(keys) or None).model_dump(mode="json")
    door.show(report)
    sys.exit(0 if report["ok"] else 1)


@click.command("export")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder on this machine.")
@click.pass_obj
def export(door: Door, /, *, out: Path) -> None:
    """Write records, seals, rows and checkpoints to a folder, for `audit verify` on any machine.

    \b
    Example:
      marketplace audit export --out ./audit-bundle
    """  # noqa: D301  (\b is click's own mark for text to leave as it is)
    if out.exists():
        raise click.UsageError(f"{out} exists; name a new folder.")
    with door.client(timeout_s=600.0) as client:
        made = client.call("audit.export")
    written = Path(made["folder"])
    if written.is_dir():
        shutil.move(written, out)
        made = {**made, "folder": str(out)}
    door.show(made)

# SPDX-License-Identifier: Apache-2.0
"""``consent verify-receipt``: checks a downloaded receipt without asking anybody."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.cli.context import Door
from policy.consents.receipts import MAX_BYTES, check_receipt


@click.command("verify-receipt")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--public-key",
    "keys",
    multiple=True,
    metavar="HEX",
    help="The platform's key, which you have from elsewhere (repeat for several).",
)
@click.pass_obj
def verify_receipt(door: Door, /, file: Path, *, keys: tuple[str, ...]) -> None:
    """Check FILE, a receipt of a consent or of an erasure, offline.

    Without a key only the signature is checked: that shows nobody changed the file, not who signed it. The
    platform's key is that of `marketplace receipt key`; keep it when you begin to work with a platform.

    \b
    Example:
      marketplace --json consent receipt con_0198f0c2a1b37c4e8d5f60718293a4b5 > receipt.json
      marketplace consent verify-receipt receipt.json --public-key …
    """  # noqa: D301  (\b is click's own mark for text to leave as it is)
    with file.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    door.show(check_receipt(data, keys).model_dump(mode="json"))

# SPDX-License-Identifier: Apache-2.0
"""``make demo``: train, permit, answer, withdraw and settle on real text, over the real doors.

Everything happens in ``build/demo`` and through the same command and HTTP API that everyone else uses. It
leaves nothing running unless ``--keep`` is given.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import sys
import time
from pathlib import Path

from rich.console import Console

from examples.demo.acts import ActFailed
from examples.demo.house import House, HouseFailed
from examples.demo.story import Story
from model_core.errors import ProductError


def main() -> int:
    """Runs the demo; 0 if everything that it promises held."""
    options = _options()
    console = Console(highlight=False)
    folder = options.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    house = House(
        home=folder / "home", port=options.port or _free_port(), settings={"host_keeps_withdrawn": "true"}
    )
    began = time.monotonic()
    story = Story(console=console, house=house, folder=folder, steps=options.steps, streams=options.streams)
    try:
        story.run()
    except (HouseFailed, ActFailed, ProductError) as error:
        console.print(f"[red bold]The demo failed:[/] {error}")
        return 1
    finally:
        story.close()
        if options.keep:
            console.print(
                f"Still running at {house.url}; key in {house.home / 'operator.key'}. Stop it with:"
            )
            console.print(
                f"  MARKETPLACE_HOME={house.home} {Path(sys.executable).parent / 'marketplace'} down"
            )
        else:
            house.command("down", quiet=True)
    console.print(f"[bold]Report:[/] {(folder / 'report.html').as_uri()}")
    console.print(f"Done in {time.monotonic() - began:.0f} s.")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the marketplace running")
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="where everything happens")
    parser.add_argument("--port", type=int, default=0, help="gateway port (default: a free one)")
    parser.add_argument("--steps", type=int, default=None, help="training steps per expert")
    parser.add_argument("--streams", type=int, default=24, help="streams open at the withdrawal")
    return parser.parse_args()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())

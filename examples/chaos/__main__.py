# SPDX-License-Identifier: Apache-2.0
"""``make chaos``: kill every process in the middle of something, bring it up again, and check every promise.

One installation lives through all seeds, so that what an early crash damaged is still looked for after the
last one. It exits 1 at the first seed after which a promise does not hold, and leaves nothing running.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import shutil
import socket
import sys
import time
from pathlib import Path

from examples.chaos.oracle import BrokenPromise
from examples.chaos.phases import FURTHER_PHASES, PHASES
from examples.chaos.processes import NotAllFound
from examples.chaos.run import Run
from examples.chaos.stage import StageFailed
from examples.demo.house import HouseFailed
from model_core.errors import ProductError


def main() -> int:
    """Plays every seed; 0 if every promise held after each."""
    options = _options()
    phases = [options.phase] if options.phase else list(PHASES)
    folder = options.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    began = time.monotonic()
    run = Run(folder, options.port or free_port(), say=lambda line: print(line, flush=True))
    seed = None
    try:
        run.open()
        for seed in range(options.first, options.first + options.seeds):
            run.play(phases[seed % len(phases)], seed)
        if options.forge:
            run.forge()
    except (BrokenPromise, StageFailed, NotAllFound, HouseFailed, ProductError) as error:
        print(f"\nseed {seed}: {type(error).__name__}: {error}", flush=True)
        print(f"What the clients were told: {folder / 'clients.jsonl'}", flush=True)
        return 1
    finally:
        run.close()
    print(f"\nEvery promise held after {options.seeds} crashes, in {time.monotonic() - began:.0f} s.")
    return 0


def free_port() -> int:
    """A port that nobody listens on, and that the kernel hands to nobody while the gateway is down."""
    handed_out_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = 10_000 + secrets.randbelow(handed_out_from - 10_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many crashes")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--phase",
        choices=[*PHASES, *FURTHER_PHASES],
        help=f"one phase alone (default: {', '.join(PHASES)} in turn)",
    )
    parser.add_argument("--folder", type=Path, default=Path("build/chaos"), help="where everything happens")
    parser.add_argument("--port", type=int, default=0, help="gateway port (default: a free one)")
    parser.add_argument(
        "--forge", action="store_true", help="at the end show that the oracle notices every kind of loss"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

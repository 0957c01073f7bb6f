# SPDX-License-Identifier: Apache-2.0
"""``marketplace up``, but with model hosts that carry a witness; a process of its own, as the command is."""

from __future__ import annotations

import sys

from cluster.parts import ACTORS
from cluster.settings import Settings
from cluster.up import bring_up


def main() -> int:
    """Brings the marketplace up that the environment describes."""
    ACTORS["reconciler"] = ("examples.storm.hosts", "WatchedReconciler")
    running = bring_up(Settings(), say=lambda line: print(line, flush=True))
    print(running.url, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

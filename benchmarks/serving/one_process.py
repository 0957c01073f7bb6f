# SPDX-License-Identifier: Apache-2.0
"""A founded marketplace whose HTTP server and engine are one process (``benchmarks.serving.one_process``).

Office, gateway and one model host as the product has them, without Ray and without a hop between gateway and
engine. Prints the port it listens on, and ends when its standard input does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from urllib.parse import urlsplit

from cluster.hosting.facts import HostSettings
from cluster.settings import Settings
from examples.storm.local import LocalHouse


def main() -> int:
    """Serves until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.one_process", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="of the installation")
    parser.add_argument("--base", required=True, help="digest of the base")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--sequences", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--kernels", type=Path, help="folder of compiled kernels; without, torch computes")
    given = parser.parse_args()
    host = HostSettings(
        max_sequences=given.sequences,
        max_context=given.context,
        threads=given.threads,
        kernels=given.kernels,
    )
    settings = Settings(home=given.home, starter_base="none")
    with LocalHouse(settings, given.base, hosts=1, host_settings=host) as house:
        print(urlsplit(house.url).port, flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())

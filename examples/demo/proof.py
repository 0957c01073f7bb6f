# SPDX-License-Identifier: Apache-2.0
"""Proves that the withdrawn expert is gone: bit for bit against a process that never held it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster.client import MarketplaceClient
from cluster.home import Home
from examples.demo.acts import ActFailed


def removed_exactly(
    client: MarketplaceClient, home: Home, deployment: str, *, withdrawn: str, text: str, scratch: Path
) -> str:
    """Compares the running host's logits with those of a fresh process whose store never held the bundle.

    Args:
        client: somebody who may ask the deployment.
        home: the installation, for its artifact store.
        deployment: the endpoint.
        withdrawn: bundle digest of the withdrawn expert.
        text: what to compute logits for.
        scratch: folder for the fresh store.

    Returns:
        The digest that both agree on.

    Raises:
        ActFailed: they differ, or the running host does not hold the expert NaN-filled.
    """
    running = client.post(f"/api/v1/deployments/{deployment}/probe", {"text": text})
    if withdrawn not in running["poisoned"]:
        raise ActFailed("The running host does not hold the withdrawn weights NaN-filled.")
    if withdrawn in running["experts"] or not running["finite"]:
        raise ActFailed("The withdrawn expert still takes part.")
    store = _store_without(home, withdrawn, scratch)
    fresh = _fresh_process(store, running, text)
    if fresh["digest"] != running["digest"]:
        raise ActFailed(f"Logits differ: {running['digest']} runs, {fresh['digest']} is fresh.")
    if withdrawn in fresh["resident"]:
        raise ActFailed("The fresh process held the withdrawn expert.")
    return str(fresh["digest"])


def _store_without(home: Home, withdrawn: str, scratch: Path) -> Path:
    name = withdrawn.rpartition(":")[2]

    def skip(folder: str, names: list[str]) -> set[str]:
        del folder
        return {entry for entry in names if name in entry}

    target = scratch / "store"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(home.root / "artifacts", target, ignore=skip)
    return target


def _fresh_process(store: Path, running: dict[str, Any], text: str) -> dict[str, Any]:
    order = {
        "store": str(store),
        "base": running["base"],
        "experts": running["experts"],
        "top_k": running["top_k"],
        "text": text,
        "threads": running["threads"],
    }
    done = subprocess.run(
        [sys.executable, "-m", "cluster.hosting.probe"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ActFailed(f"The fresh process failed: {done.stderr[-600:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer

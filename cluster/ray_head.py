# SPDX-License-Identifier: Apache-2.0
"""The process that owns an installation's Ray head: it starts the node, watches it, and ends with it.

Run as ``python -m cluster.ray_head`` with a JSON document on standard input. ``ray start`` is not used
because it opens doors that the marketplace does not want: it always starts the Ray client server, the
dashboard's API server, and on every node a dashboard agent with an HTTP server. Here the same node is
built without them, so that what still listens are gRPC servers on loopback that ask for the token.

Everything below this process dies with it (the kernel sends SIGKILL when the parent ends), and it ends
when the GCS or the raylet does: a marketplace is either whole or gone, and ``up`` need not guess.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

_POLL_S = 0.5


def main() -> int:
    """Starts the node described on standard input, writes where it listens, and waits for its end."""
    os.umask(0o077)
    order = json.loads(sys.stdin.read())
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the operator's terminal is not for us
    node = _start(order)
    # after the node, whose own handler would drain it for half a minute; there is nothing to drain
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    answer = Path(order["answer_file"])
    draft = answer.with_suffix(".draft")
    draft.write_text(
        json.dumps({"gcs_address": node.gcs_address, "session_dir": node.get_session_dir_path()})
    )
    draft.rename(answer)
    while not stop.wait(_POLL_S):
        if node.dead_processes():
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            return 1
    node.kill_all_processes(check_alive=False, allow_graceful=False)
    return 0


def _start(order: dict[str, Any]) -> Any:
    import ray._private.utils as ray_utils
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    # Without its optional dependencies Ray runs the agent of a node without any server. They are installed
    # here for Serve's sake, so the question is answered for Ray: this node has no dashboard.
    ray_utils.get_dashboard_dependency_error = lambda: ImportError("this node serves no dashboard")

    import cluster.ray_worker as worker_program

    class Head(Node):  # type: ignore[misc, unused-ignore]
        def start_api_server(self, **_: Any) -> None:
            """No dashboard: neither its pages nor its job API are offered."""

    parameters = RayParams(
        node_ip_address="127.0.0.1",
        gcs_server_port=0,
        num_cpus=order["num_cpus"],
        num_gpus=order["num_gpus"],
        object_store_memory=order["object_store_bytes"],
        temp_dir=order["temp_dir"],
        include_dashboard=False,
        include_log_monitor=False,
        no_monitor=True,
        ray_client_server_port=None,
        worker_path=worker_program.__file__,
    )
    return Head(parameters, head=True, shutdown_at_exit=True, spawn_reaper=True)


if __name__ == "__main__":
    sys.exit(main())

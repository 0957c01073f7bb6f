# SPDX-License-Identifier: Apache-2.0
"""Where every worker process of the own Ray head begins: it closes a door, then becomes a Ray worker.

A Serve replica opens a gRPC server for calls between replicas on all interfaces of the machine, and no
setting says otherwise. The one function through which it binds is replaced here, before Serve is imported,
by one that binds the loopback address when the node itself lives on loopback.
"""

from __future__ import annotations

import os
import runpy
from typing import Any

_EVERYWHERE = ("[::]:", "0.0.0.0:")


def on_loopback(address: str) -> str:
    """The same port on the loopback address, if the address means every interface."""
    for prefix in _EVERYWHERE:
        if address.startswith(prefix):
            return "127.0.0.1:" + address.removeprefix(prefix)
    return address


def close_doors() -> None:
    """Makes Ray's Python gRPC servers of this process bind to loopback."""
    import ray._common.tls_utils as servers

    bind = servers.add_port_to_grpc_server

    def bind_on_loopback(server: Any, address: str) -> Any:
        return bind(server, on_loopback(address))

    servers.add_port_to_grpc_server = bind_on_loopback


def main() -> None:
    """Closes the door and runs Ray's own worker program with this process's arguments."""
    import ray._private.workers as programs

    os.umask(0o077)
    close_doors()
    runpy.run_path(os.path.join(os.path.dirname(programs.__file__), "default_worker.py"), run_name="__main__")  # noqa: PTH118, PTH120


if __name__ == "__main__":
    main()

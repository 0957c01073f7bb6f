# SPDX-License-Identifier: Apache-2.0
"""The gateway's own HTTP server: binds an address and serves an application in the running event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any

import uvicorn

from cluster.errors import StartFailed

_BIND_TRIES = 100
_BIND_PAUSE_S = 0.1


def quiet_server(app: Any) -> uvicorn.Server:
    """A server that logs no requests, names no product and installs no signal handlers."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=64 * 1024,
    )
    # Request lines carry query fields; whatever handlers somebody installed, they are not written down.
    logging.getLogger("uvicorn.access").disabled = True
    server = uvicorn.Server(config)
    # The replica's process belongs to Ray; a server that caught its signals would outlive its replica.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    return server


async def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Binds the address, waiting for a replica that is just leaving it.

    Args:
        host: address.
        port: 0 lets the kernel choose.
        shared: whether other processes of this user may listen at the same address; the kernel then gives
            every new connection to one of them.

    Raises:
        StartFailed: the address stays taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for attempt in range(_BIND_TRIES):
        # The protocol is named because asyncio sets TCP_NODELAY only on sockets that name it; without, every
        # answer waits 40 ms for an acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            if attempt == _BIND_TRIES - 1:
                raise StartFailed(
                    f"The address {host}:{port} is taken. Choose another with MARKETPLACE_HTTP_PORT.",
                    part="gateway",
                ) from error
            await asyncio.sleep(_BIND_PAUSE_S)
        else:
            listener.setblocking(False)
            return listener
    raise AssertionError


def free_port(host: str, port: int) -> int:
    """A port that nobody listens at, for several processes to share: the given one, or any where it is 0.

    Raises:
        StartFailed: it is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartFailed(
                f"The address {host}:{port} is taken. Choose another with MARKETPLACE_HTTP_PORT.",
                part="gateway",
            ) from error
        return int(probe.getsockname()[1])

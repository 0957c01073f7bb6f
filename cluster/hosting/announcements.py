# SPDX-License-Identifier: Apache-2.0
"""Which replicas every application has, as this process was told: one teller per application, many listeners.

Serve copies a router's class by value, with everything its module holds, so what routers and fleets of a
process share stands here and not beside the router. This module knows neither Ray nor what a replica does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

Listener = Callable[[frozenset[str]], None]

_mutex = threading.Lock()
_present: dict[str, frozenset[str]] = {}
_listeners: dict[str, list[Listener]] = {}


def listen(application: str, listener: Listener) -> None:
    """Tells a listener which replicas an application has, now and whenever that changes, on any thread."""
    with _mutex:
        _listeners.setdefault(application, []).append(listener)
        present = _present.get(application)
    if present is not None:
        listener(present)


def announce(application: str, replicas: frozenset[str]) -> None:
    """Says which replicas an application has now."""
    with _mutex:
        _present[application] = replicas
        listeners = tuple(_listeners.get(application, ()))
    for listener in listeners:
        listener(replicas)

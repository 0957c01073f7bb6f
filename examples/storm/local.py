# SPDX-License-Identifier: Apache-2.0
"""A whole marketplace in one process: office, gateway with its HTTP server, and several model hosts.

The parts are the product's own; only Ray is left out, so that it stands in seconds. Every host has an engine
thread, a journal and a lease of its own, as a replica has.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from cluster.bootstrap import open_office, open_store
from cluster.client import MarketplaceClient
from cluster.gateway.app import build_app
from cluster.gateway.door import DoorLimits
from cluster.gateway.server import bind, quiet_server
from cluster.home import Home
from cluster.hosting.facts import HostSettings
from cluster.hosting.host import keys_of
from cluster.hosting.messages import GenerationChunk, GenerationRequest
from cluster.hosting.server import ModelServer
from cluster.office.protocol import Admission
from cluster.settings import Settings

_SWITCH_S = 0.0005
# Compiling kernels for the first time is most of it.
_START_S = 280.0


class _Turns:
    """Model hosts that are asked in turn."""

    def __init__(self) -> None:
        self.servers: list[ModelServer] = []
        self._turn = itertools.count()

    async def generate(
        self, admission: Admission, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk, None]:
        server = self.servers[next(self._turn) % len(self.servers)]
        async for chunk in server.generate(admission, request):
            yield chunk


class LocalHouse:
    """A founded marketplace, running.

    Args:
        settings: of the installation.
        base_digest: what its hosts hold.
        hosts: how many.
        host_settings: choices of each host.
        offices: wraps the office for each host, by number; tests cut hosts off with it.
        pace_s: pause before every step: answers of a model this small would be over before anybody could
            withdraw anything from under them.
    """

    def __init__(
        self,
        settings: Settings,
        base_digest: str,
        *,
        hosts: int,
        host_settings: HostSettings,
        offices: Callable[[Any, int], Any] = lambda office, _number: office,
        pace_s: float = 0.0,
    ) -> None:
        self.settings, self.home = settings, Home(settings.home)
        self.url = ""
        self._base_digest, self._hosts, self._host_settings = base_digest, hosts, host_settings
        self._offices = offices
        self._pace_s = pace_s
        self._turns = _Turns()
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="house", daemon=True)

    @property
    def servers(self) -> list[ModelServer]:
        """The model hosts."""
        return self._turns.servers

    def __enter__(self) -> LocalHouse:
        """Brings everything up."""
        # Engines and doors share one interpreter: with the usual 5 ms every answer waits for several engines.
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        self._thread.start()
        if not self._ready.wait(_START_S):
            raise TimeoutError("The marketplace does not come up.")
        if self._failed is not None:
            raise self._failed
        return self

    def __exit__(self, *_: object) -> None:
        """Ends streams and hosts, and closes the office."""
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(60)
        sys.setswitchinterval(self._switch_s)

    def client(self, key: str | None, *, timeout_s: float = 60.0) -> MarketplaceClient:
        """A client with somebody's key."""
        return MarketplaceClient(url=self.url, key=key, timeout_s=timeout_s)

    def wait(self, question: Coroutine[Any, Any, Any]) -> Any:
        """Runs something on the house's event loop."""
        return asyncio.run_coroutine_threadsafe(question, self._loop).result(60)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as error:
            self._failed = error
            self._ready.set()
            raise
        finally:
            self._loop.close()

    async def _live(self) -> None:
        settings = self.settings
        self._ending = asyncio.Event()
        office = open_office(settings.model_dump(mode="json"))
        store = open_store(settings, self.home)
        for number in range(self._hosts):
            server = ModelServer(
                office=self._offices(office, number),
                store=store,
                trusted=keys_of(self.home),
                base_digest=self._base_digest,
                journals=self.home.journals,
                settings=self._host_settings,
            )
            await server.start()
            if self._pace_s:
                _pace(server, self._pace_s)
            self.servers.append(server)
        limits = DoorLimits(
            staging=self.home.uploads,
            max_upload_bytes=settings.max_upload_bytes,
            max_tokens=settings.max_tokens,
        )
        listener = await bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        web = quiet_server(build_app(office, self._turns, limits, artifacts=store))
        serving = asyncio.create_task(web.serve(sockets=[listener]))
        while not web.started:
            await asyncio.sleep(0.005)
        self._ready.set()
        await self._ending.wait()
        web.should_exit = True
        await serving
        for server in self.servers:
            await server.stop()
        await asyncio.to_thread(office.close)


def _pace(server: ModelServer, pause_s: float) -> None:
    engine = server.room.engine
    step = engine.step

    def paced() -> Any:
        time.sleep(pause_s)
        return step()

    engine.step = paced  # type: ignore[method-assign]

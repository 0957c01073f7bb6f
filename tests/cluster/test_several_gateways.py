# SPDX-License-Identifier: Apache-2.0
"""Several gateways at one address: the kernel spreads connections, and a session is known to all of them."""

from __future__ import annotations

import asyncio
import base64
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from cluster.errors import StartFailed
from cluster.gateway.sealed import KEY_BYTES, SealedSessions
from cluster.gateway.server import bind, free_port, quiet_server
from cluster.gateway.sessions import COOKIE, IDLE_S, LONGEST_S

SECRET = "mk_a-key-that-nobody-may-read"


class Clock:
    """Time as the test has it."""

    now_s = 1_000_000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s


def _asks(cookie: str) -> Request:
    asked: Any = SimpleNamespace(cookies={COOKIE: cookie})
    return asked


def _signed_in(sessions: SealedSessions) -> str:
    return sessions.open(credential=SECRET, name="Ada", tenant="north", roles=frozenset({"owner"}))


def test_session_is_known_to_every_gateway_with_the_key_and_to_no_other() -> None:
    """What one gateway sealed another opens; another key or a changed bit opens nothing."""
    key, clock = bytes(range(KEY_BYTES)), Clock()
    first, second = SealedSessions(key, clock), SealedSessions(key, clock)
    cookie = _signed_in(first)
    found = second.find(_asks(cookie))
    assert found is not None
    assert (found.credential, found.tenant, found.roles) == (SECRET, "north", frozenset({"owner"}))
    assert found.form_token == first.find(_asks(cookie)).form_token  # type: ignore[union-attr]
    assert SECRET.encode() not in base64.urlsafe_b64decode(cookie + "==")
    assert SealedSessions(bytes(KEY_BYTES), clock).find(_asks(cookie)) is None
    for place in (0, 20, len(cookie) - 2):
        other = "A" if cookie[place] != "A" else "B"
        assert second.find(_asks(cookie[:place] + other + cookie[place + 1 :])) is None
    for nonsense in ("", "x", "ä", "A" * 5000):
        assert second.find(_asks(nonsense)) is None


def test_session_ends_by_age_idleness_sign_out_and_refused_key() -> None:
    """Each of the four ends it."""
    clock = Clock()
    sessions = SealedSessions(bytes(KEY_BYTES), clock)
    idle, used, out, refused = (_signed_in(sessions) for _ in range(4))
    sessions.close(_asks(out))
    assert sessions.find(_asks(out)) is None
    for _ in range(LONGEST_S // IDLE_S + 2):
        assert sessions.find(_asks(used)) is not None or clock.now_s > 1_000_000 + LONGEST_S
        clock.now_s += IDLE_S - 1
    assert sessions.find(_asks(idle)) is None
    assert sessions.find(_asks(used)) is None
    clock.now_s = 1_000_000.0
    sessions.close_credential(SECRET)
    assert sessions.find(_asks(refused)) is None


def test_two_servers_share_one_port() -> None:
    """Forty connections are answered, by both of them; a third party that does not share is refused."""

    async def story() -> set[str]:
        port = free_port("127.0.0.1", 0)
        servers = []
        for name in ("a", "b"):
            listener = await bind("127.0.0.1", port, shared=True)
            server = quiet_server(_says(name))
            servers.append((server, asyncio.create_task(server.serve(sockets=[listener]))))
        while not all(server.started for server, _ in servers):
            await asyncio.sleep(0.005)
        with pytest.raises(StartFailed):
            free_port("127.0.0.1", port)
        found = set()
        for _ in range(40):
            async with httpx.AsyncClient(trust_env=False) as http:
                found.add((await http.get(f"http://127.0.0.1:{port}/")).text)
        for server, task in servers:
            server.should_exit = True
            await task
        return found

    assert asyncio.run(story()) == {"a", "b"}


def _says(name: str) -> Any:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name.encode()})

    return app

# SPDX-License-Identifier: Apache-2.0
"""Safe by default: every listening socket of a running marketplace, tried without credentials."""

from __future__ import annotations

import json
import socket
import ssl
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.doors import Answer, OpenDoor, knock, open_doors
from cluster.ray_node import processes_of

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def doors(marketplace: Any) -> list[OpenDoor]:
    """What listens."""
    return list(open_doors(marketplace.run_id))


@pytest.fixture(scope="module")
def answers(doors: list[OpenDoor]) -> dict[OpenDoor, list[Answer]]:
    """What each door says to somebody without credentials."""
    with ThreadPoolExecutor(16) as hands:  # a silent door costs its patience; they are silent together
        return dict(zip(doors, hands.map(lambda door: knock(door, timeout_s=3.0), doors), strict=True))


def test_everything_listens_on_loopback(doors: list[OpenDoor]) -> None:
    """No process of the marketplace can be reached from another machine."""
    assert {door.process for door in doors} >= {"gcs_server", "raylet"}
    assert [door for door in doors if not door.on_loopback] == []


def test_nothing_answers_without_a_key(answers: dict[OpenDoor, list[Answer]], marketplace: Any) -> None:
    """Without a key the gateway gives health and the sign-in page, Ray's agent refuses, others are silent."""
    port = int(marketplace.url.rpartition(":")[2])
    assert any(door.port == port and said for door, said in answers.items())
    for door, said in answers.items():
        for answer in said:
            assert answer.protocol == "http", (door, answer)
            if door.port != port:
                assert answer.code == "401", (door, answer)
            elif answer.question == "GET /healthz":
                assert answer.code == "200"
            else:
                refused = answer.code in {"401", "403", "404", "405"}
                to_sign_in = answer.code in {"302", "303", "307"}
                assert refused or to_sign_in, (door, answer)


def test_silent_doors_want_a_certificate(answers: dict[OpenDoor, list[Answer]]) -> None:
    """Every door that says nothing in clear speaks TLS, and hangs up on a client without a certificate."""
    silent = [door for door, said in answers.items() if not said]
    assert {"gcs_server", "raylet"} <= {door.process for door in silent}
    for door in silent:
        assert _said_over_tls(door) is None, door


def _said_over_tls(door: OpenDoor) -> bytes | None:
    """What a door says to a stranger over TLS; None if it ends the handshake for want of a certificate."""
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    stranger.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection(("127.0.0.1", door.port), timeout=5) as plain,
            stranger.wrap_socket(plain) as secured,
        ):
            secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            return secured.recv(100) or None
    except (ssl.SSLError, ConnectionError):
        return None


def test_unknown_and_wrong_keys_are_refused(marketplace: Any) -> None:
    """A wrong key is refused like none, on both interfaces of the gateway."""
    for key in ("mk_key_00000000000000000000000000000000_" + "A" * 43, "x", marketplace.operator_key[:-1]):
        for path in ("/api/v1/me", "/v1/models"):
            reply = httpx.get(marketplace.url + path, headers={"Authorization": f"Bearer {key}"})
            assert reply.status_code == 401, (path, reply.text)
    reply = httpx.get(
        f"{marketplace.url}/api/v1/me", headers={"Authorization": f"Bearer {marketplace.operator_key}"}
    )
    assert reply.status_code == 200


def test_no_process_knows_the_shells_secrets(marketplace: Any) -> None:
    """What the operator's shell exports reaches no process of the marketplace, nor does the token itself."""
    token = (marketplace.home / "keys" / "ray.token").read_bytes()
    seen = 0
    for process in processes_of(marketplace.run_id):
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert marketplace.SHELL_SECRET.encode() not in environment, process
        assert token not in environment, process
        seen += 1
    assert seen >= 8


def test_nobody_else_can_enter_the_folders(marketplace: Any) -> None:
    """Home and Ray's folder are closed to other users, whose processes could else use Ray's Unix sockets."""
    run = json.loads((marketplace.home / "run.json").read_text())
    for folder in (marketplace.home, Path(run["ray"]["temp_dir"])):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for secret in (marketplace.home / "keys").rglob("*.*"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600

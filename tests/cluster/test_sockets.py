# SPDX-License-Identifier: Apache-2.0
"""Safe by default: every listening socket of a running marketplace, tried without credentials."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.doors import HARMLESS_METHODS, OpenDoor, knock, open_doors
from cluster.ray_node import processes_of

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def doors(marketplace: Any) -> list[OpenDoor]:
    """What listens."""
    return list(open_doors(marketplace.run_id))


def test_everything_listens_on_loopback(doors: list[OpenDoor]) -> None:
    """No process of the marketplace can be reached from another machine."""
    assert {door.process for door in doors} >= {"gcs_server", "raylet"}
    assert [door for door in doors if not door.on_loopback] == []


def test_nothing_answers_without_a_key(doors: list[OpenDoor], marketplace: Any) -> None:
    """Without a key the gateway gives health and the sign-in page, Ray refuses, and nothing else answers.

    Ray's gRPC servers answer two standard services to anybody on this machine, and no setting closes them:
    "serving", and the list of Ray's own service names.
    """
    port = int(marketplace.url.rpartition(":")[2])
    for door in doors:
        answers = knock(door)
        assert answers, f"{door} says nothing that we understand"
        for answer in answers:
            if answer.protocol == "grpc":
                harmless = answer.question in HARMLESS_METHODS and len(answer.body) < 16
                assert harmless or answer.code in {"UNAUTHENTICATED", "UNIMPLEMENTED"}, (door, answer)
            elif door.port != port:
                assert answer.code == "401", (door, answer)
            elif answer.question == "GET /healthz":
                assert answer.code == "200"
            else:
                refused = answer.code in {"401", "403", "404", "405"}
                to_sign_in = answer.code in {"302", "303", "307"}
                assert refused or to_sign_in, (door, answer)


def test_every_service_of_ray_was_asked(doors: list[OpenDoor]) -> None:
    """Each gRPC door refused at least one method for want of a token: it is Ray's, and it is locked."""
    for door in doors:
        answers = knock(door)
        if answers[0].protocol == "grpc":
            assert any(answer.code == "UNAUTHENTICATED" for answer in answers), door


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

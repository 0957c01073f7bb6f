# SPDX-License-Identifier: Apache-2.0
"""Finds every socket on which a running marketplace listens, and what each says to somebody without a key.

Used by the doctor and by the test behind "safe by default". It looks at processes, not at configuration, so
a door that a library opens by itself is found like any other.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from typing import Literal

import httpx
import psutil
from pydantic import BaseModel, ConfigDict

from cluster.ray_node import processes_of

# One method of every gRPC service that Ray offers somewhere; a server that lacks it says UNIMPLEMENTED.
RAY_METHODS = (
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVGet",
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.ActorInfoGcsService/GetAllActorInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.NodeManagerService/RequestWorkerLease",
    "/ray.rpc.ObjectManagerService/Push",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.CoreWorkerService/KillActor",
    "/ray.rpc.CoreWorkerService/Exit",
    "/ray.serve.ASGIService/HandleRequest",
)
#: Standard services that a gRPC server may answer without any key: health, and the names of its services.
STANDARD_METHODS = (
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
HTTP_PATHS = ("/", "/metrics", "/api/v1/me", "/api/jobs/", "/get_runtime_envs_info", "/-/routes", "/healthz")


class OpenDoor(BaseModel):
    """A listening socket.

    Attributes:
        process: name of the process that listens.
        pid: its id.
        address: IP address it is bound to.
        port: port it is bound to.
    """

    model_config = ConfigDict(frozen=True)

    process: str
    pid: int
    address: str
    port: int

    @property
    def on_loopback(self) -> bool:
        """True if only this machine can reach it."""
        found = ipaddress.ip_address(self.address)
        mapped = getattr(found, "ipv4_mapped", None)
        return bool((mapped or found).is_loopback)


class Answer(BaseModel):
    """What a door said to one question without a credential.

    Attributes:
        protocol: ``http`` or ``grpc``.
        question: path or method.
        code: HTTP status as text, or the gRPC status name; ``OK`` if it answered.
        body: the first bytes of what it said.
    """

    model_config = ConfigDict(frozen=True)

    protocol: Literal["http", "grpc"]
    question: str
    code: str
    body: bytes = b""


def open_doors(run_id: str) -> Iterator[OpenDoor]:
    """Every TCP socket on which a process of the run listens, and every UDP socket bound by one."""
    for process in processes_of(run_id):
        with contextlib.suppress(psutil.Error):
            for found in process.net_connections(kind="inet"):
                if found.status == psutil.CONN_LISTEN or found.type == socket.SOCK_DGRAM:
                    address, port = found.laddr[:2]
                    yield OpenDoor(process=process.name(), pid=process.pid, address=address, port=port)


def knock(door: OpenDoor, *, timeout_s: float = 3.0) -> list[Answer]:
    """Asks a door everything we know how to ask, without any credential.

    A door that speaks neither HTTP nor gRPC yields no answers.
    """
    host = "[::1]" if door.address in {"::", "::1"} else "127.0.0.1"
    if not door.on_loopback and door.address not in {"::", "0.0.0.0"}:  # noqa: S104  compared, not bound
        host = f"[{door.address}]" if ":" in door.address else door.address
    answers = _ask_http(f"http://{host}:{door.port}", timeout_s)
    return answers or _ask_grpc(f"{host}:{door.port}", timeout_s)


def _ask_http(origin: str, timeout_s: float) -> list[Answer]:
    answers: list[Answer] = []
    with httpx.Client(timeout=timeout_s, trust_env=False, follow_redirects=False) as client:
        for path in HTTP_PATHS:
            for method in ("GET", "POST"):
                try:
                    reply = client.request(method, origin + path)
                except httpx.TransportError:
                    return answers
                answers.append(
                    Answer(
                        protocol="http",
                        question=f"{method} {path}",
                        code=str(reply.status_code),
                        body=reply.content[:200],
                    )
                )
    return answers


def _ask_grpc(target: str, timeout_s: float) -> list[Answer]:
    import grpc  # type: ignore[import-untyped, unused-ignore]

    answers: list[Answer] = []
    with grpc.insecure_channel(target) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            return []
        for method in (*RAY_METHODS, *STANDARD_METHODS):
            try:
                body = channel.unary_unary(method)(b"", timeout=timeout_s)
                answers.append(Answer(protocol="grpc", question=method, code="OK", body=bytes(body)[:200]))
            except grpc.RpcError as error:
                answers.append(Answer(protocol="grpc", question=method, code=error.code().name))
    return answers

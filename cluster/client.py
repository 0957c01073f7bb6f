# SPDX-License-Identifier: Apache-2.0
"""The marketplace seen from outside: calls operations by name over HTTP with a key.

The command line, the demo and the chaos proof all speak through this client, so none of them has a door
that other programs lack. It knows the table of operations (paths and methods) and nothing of what is
behind it. Problem documents come back as the errors that the server raised.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from cluster.errors import GatewayUnreachable, UnknownOperation
from cluster.operations.catalogue import OPERATIONS
from cluster.operations.table import LONGEST_WEIGHING_S, Operation
from cluster.problems import error_of
from model_core.errors import ProductError

_PREFIX = "/api/v1"


class MarketplaceClient:
    """A principal's connection to one gateway.

    Args:
        url: base address, e.g. ``http://127.0.0.1:8321``.
        key: API key secret; None reaches health and nothing else.
        timeout_s: patience per request; streams wait this long for each chunk.
    """

    def __init__(self, *, url: str, key: str | None, timeout_s: float = 60.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def call(self, operation: str, *, idempotency_key: str | None = None, **fields: Any) -> dict[str, Any]:
        """Calls an operation, e.g. ``call("consents.withdraw", consent_id="cns_…")``.

        Raises:
            ProductError: the refusal that the server answered, with its code.
            GatewayUnreachable: nobody answers at the address.
        """
        row = self._row(operation)
        path, rest = self._path(row, fields)
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        if row.method == "GET":
            return self._send(row.method, path, params=_query(rest), headers=headers)
        return self._send(row.method, path, json=rest, headers=headers)

    def upload(self, operation: str, file: Path, **fields: Any) -> dict[str, Any]:
        """Calls an operation whose body is a file; it is streamed, never held whole."""
        row = self._row(operation)
        path, rest = self._path(row, fields)
        media = row.upload.media_type if row.upload else "application/octet-stream"
        timeout_s = self._timeout_s + (LONGEST_WEIGHING_S if row.weighs else 0.0)
        with file.open("rb") as body:
            return self._send(
                row.method,
                path,
                params=_query(rest),
                content=body,
                headers={"Content-Type": media},
                timeout=timeout_s,
            )

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Posts JSON to a path outside the table (the OpenAI API, proofs of a deployment)."""
        return self._send("POST", path, json=dict(body), headers={})

    def get(self, path: str) -> dict[str, Any]:
        """Gets JSON from a path outside the table."""
        return self._send("GET", path, headers={})

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Posts JSON and yields the server-sent events' documents until ``[DONE]``."""
        try:
            with self._http.stream("POST", path, json=dict(body)) as response:
                if response.status_code >= 400:
                    response.read()
                    raise _refusal(response)
                for line in response.iter_lines():
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        return
                    yield _event(line.removeprefix("data: "))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def download(
        self, path: str, into: Path, on_bytes: Callable[[int, int], None] = lambda _done, _total: None
    ) -> None:
        """Posts to a path whose answer is a file, and writes it; a refusal leaves no file behind.

        Args:
            path: outside the table.
            into: the file to write.
            on_bytes: told bytes received and bytes in all (0 if the server does not say).
        """
        try:
            with self._http.stream("POST", path, json={}) as response:
                if response.status_code >= 400:
                    response.read()
                    raise _refusal(response)
                total, done = int(response.headers.get("Content-Length", 0)), 0
                with into.open("wb") as file:
                    for part in response.iter_bytes(1 << 20):
                        file.write(part)
                        done += len(part)
                        on_bytes(done, total)
        except httpx.TransportError as error:
            into.unlink(missing_ok=True)
            raise self._unreachable(error) from error

    def _row(self, operation: str) -> Operation:
        row = OPERATIONS.get(operation)
        if row is None:
            raise UnknownOperation(f"There is no operation {operation!r}. See: marketplace --help")
        return row

    def _path(self, row: Operation, fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        rest = {name: value for name, value in fields.items() if value is not None}
        path = row.path
        for name in row.placeholders:
            path = path.replace("{" + name + "}", quote(str(rest.pop(name, "")), safe=""))
        return _PREFIX + path, rest

    def _send(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.status_code >= 400:
            raise _refusal(response)
        document: dict[str, Any] = response.json()
        return document

    def _unreachable(self, error: httpx.TransportError) -> GatewayUnreachable:
        return GatewayUnreachable(
            f"Nobody answers at {self.url} ({type(error).__name__}). Start it with `marketplace up`, or name "
            "the right address with --url.",
            url=self.url,
        )


def _query(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: json.dumps(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if value is not None
    }


def _event(text: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text)
    if "error" in document:
        raise _from_openai(document["error"])
    return document


def _refusal(response: httpx.Response) -> ProductError:
    try:
        document = response.json()
    except ValueError:
        document = {"detail": response.reason_phrase, "status": response.status_code}
    if isinstance(document.get("error"), dict):
        return _from_openai(document["error"] | {"status": response.status_code})
    return error_of(document)


def _from_openai(error: Mapping[str, Any]) -> ProductError:
    return error_of(
        {
            "code": error.get("code") or "remote_problem",
            "detail": error.get("message"),
            "status": error.get("status", 500),
        }
    )

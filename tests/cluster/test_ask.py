# SPDX-License-Identifier: Apache-2.0
"""``marketplace ask`` waits for a model host that still starts, and for nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner, Result

from cluster.cli import ask as asking
from cluster.cli.context import Door

Event = dict[str, object]

_SAID: list[Event] = [{"choices": [{"text": "sleeps"}]}, {"choices": [{"text": " well"}]}]


def _error(code: str) -> Event:
    return {"error": {"code": code, "message": f"It is {code}.", "type": "server_error"}}


@contextmanager
def _gateway(answers: list[list[Event]]) -> Iterator[str]:
    """A server that gives these answers in turn; one that begins with an error has no other events."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            events = answers.pop(0)
            self.send_response(503 if "error" in events[0] else 200)
            self.end_headers()
            if "error" in events[0]:
                self.wfile.write(json.dumps(events[0]).encode())
                return
            for event in events:
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _ask(answers: list[list[Event]], *options: str) -> Result:
    with _gateway(answers) as url:
        door = Door(url=url, key="mk_app", as_json=False)
        return CliRunner().invoke(asking.ask, ["desk", "The patient", *options], obj=door)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_ASK_AGAIN_S", 0.01)


def test_it_asks_again_while_the_host_starts() -> None:
    """Two refusals for want of a host are said once, and the answer comes out as if there had been none."""
    starting = [_error("host_unavailable")]
    answers: list[list[Event]] = [starting, starting, [*_SAID, {"choices": []}]]
    said = _ask(answers)
    assert said.exit_code == 0, said.output
    assert said.stdout == "sleeps well\n"
    assert said.stderr.count("It is host_unavailable.") == 1
    assert "180 s" in said.stderr
    assert not answers


def test_it_waits_no_longer_than_it_was_told() -> None:
    """With nothing to wait for the refusal is what the command ends with."""
    said = _ask([[_error("host_unavailable")]], "--wait-s", "0")
    assert getattr(said.exception, "code", None) == "host_unavailable"


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([[_error("deployment_not_found")]], id="another refusal"),
        pytest.param([[_SAID[0], _error("host_unavailable")]], id="an answer that had begun"),
    ],
)
def test_nothing_else_is_asked_twice(answers: list[list[Event]]) -> None:
    """A refusal that time does not heal ends the command, as does a host that goes away in its answer."""
    said = _ask(answers)
    assert said.exception is not None
    assert not answers
    assert "Waiting" not in said.stderr

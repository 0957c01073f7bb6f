# SPDX-License-Identifier: Apache-2.0
"""The HTTP door: who gets an answer at all, in which form, and what the description says."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import OfficeUnavailable
from cluster.gateway.bodies import parse_json_object
from cluster.gateway.description_doors import OTHER_DOORS
from cluster.gateway.errors import MalformedBody
from cluster.gateway.sessions import IDLE_S, LONGEST_S, MAX_SESSIONS, Sessions
from cluster.operations.catalogue import OPERATIONS

OPEN = {
    ("GET", "/healthz"),
    ("GET", "/console/sign-in"),
    ("GET", "/console/static/console.css"),
    ("GET", "/console/static/htmx.min.js"),
    ("GET", "/console/static/icon.svg"),
}


def _routes() -> list[tuple[str, str]]:
    management = [(row.method, "/api/v1" + row.path) for row in OPERATIONS.values()]
    others = [
        ("GET", "/"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/api/v1/openapi.json"),
        ("GET", "/metrics"),
        ("GET", "/-/routes"),
        ("GET", "/console"),
        ("GET", "/console/"),
        ("GET", "/console/experts"),
        ("GET", "/console/static/../pages.py"),
        ("GET", "/console/static/pages.py"),
        ("GET", "/console/unknown"),
        ("POST", "/console/sign-out"),
        ("POST", "/console/consents/x/withdraw"),
        ("POST", "/console/datasets"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/x"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/api/v1/deployments/x/score"),
        ("POST", "/api/v1/deployments/x/probe"),
        ("POST", "/healthz"),
        ("PUT", "/console/sign-in"),
        ("GET", "/healthz/"),
        ("GET", "//healthz"),
        ("OPTIONS", "/api/v1/me"),
        ("HEAD", "/api/v1/me"),
        ("TRACE", "/"),
    ]
    return management + others


def test_town_runs_the_permitted_expert(town: Any) -> None:
    """What was offered, consented to, granted and approved is what the deployment runs."""
    shown = town.get("dev", "/deployments/notes-research")
    assert [row["expert_id"] for row in shown["composition"]["members"]] == [town.ids["expert"]]


def test_nothing_answers_without_a_key(town: Any) -> None:
    """Every route, known or not, is 401 without a key, with a malformed body, and with an unknown key."""
    for method, path in _routes():
        for headers in ({}, {"Authorization": "Bearer mk_unknown_key"}, {"Authorization": "Basic YTpi"}):
            answer = town.http.request(method, path, headers=headers, content=b"{")
            assert answer.status_code == 401, (method, path, headers, answer.status_code)
            assert answer.headers["www-authenticate"].startswith("Bearer")
    for method, path in OPEN:
        assert town.http.request(method, path).status_code == 200


def test_known_and_unknown_routes_look_alike_to_strangers(town: Any) -> None:
    """A stranger cannot tell from the answers which routes exist."""

    def seen(path: str) -> Any:
        answer = town.http.get(path)
        return {name: value for name, value in answer.json().items() if name != "instance"}

    assert seen("/api/v1/experts") == seen("/api/v1/no-such-thing")


def test_answers_carry_careful_headers(town: Any) -> None:
    """Every answer forbids sniffing, framing and caching; no answer names the server's software."""
    for path in ("/healthz", "/api/v1/me", "/console/sign-in", "/v1/models", "/nowhere"):
        headers = town.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
        assert headers["x-request-id"].startswith("req_")


def test_health_says_when_the_office_is_away(town: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an office the health answer is 503, and requests are told to come again."""

    async def away(*_: Any, **__: Any) -> Any:
        raise OfficeUnavailable("The office does not answer. Try again soon.", retry_after_s=2)

    for method in ("health", "identify", "call", "admit_request"):
        monkeypatch.setattr(town.office, method, away)
    assert town.http.get("/healthz").status_code == 503
    answer = town.ask("ada", "GET", "/me")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    asked = town.http.post(
        "/v1/completions",
        json={"model": "m", "prompt": "x"},
        headers={"Authorization": f"Bearer {town.keys['dev']}"},
    )
    assert (asked.status_code, asked.json()["error"]["code"]) == (503, "office_unavailable")


def test_unexpected_errors_show_and_log_no_text(
    town: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error nobody expected is a 500 with a request id; its text is neither answered nor logged."""

    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("canary text")

    monkeypatch.setattr(town.office, "call", broken)
    answer = town.ask("ada", "GET", "/me")
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "canary" not in answer.text
    assert "canary" not in caplog.text
    assert answer.headers["x-request-id"] in caplog.text


def test_description_is_complete_and_needs_a_key(town: Any) -> None:
    """The OpenAPI document names every operation, and every reference in it leads somewhere."""
    document = town.get("ada", "/openapi.json")
    described = {
        operation["operationId"]: (method.upper(), path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    wanted = {row.name: (row.method, "/api/v1" + row.path) for row in OPERATIONS.values()}
    beside = {door.name: (door.method, door.path) for door in OTHER_DOORS}
    assert described == wanted | beside
    schemas = document["components"]["schemas"]
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in schemas
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["summary"]
            assert "401" in operation["responses"]


def test_answers_fit_their_description(town: Any) -> None:
    """Every list and page that can be read without an id validates against its row's response model."""
    for row in OPERATIONS.values():
        if row.method == "GET" and not row.placeholders:
            who = "carol" if "compliance" in {str(role) for role in row.roles} else "ada"
            needed = {name for name, one in row.request.model_fields.items() if one.is_required()}
            asked = {name: value for name, value in row.example.items() if name in needed}
            row.response.model_validate(town.get(who, row.path, **asked))


def test_console_cookie_opens_no_api(town: Any) -> None:
    """The console's session is for the console alone, so that no other site can act through it."""
    town.http.post("/console/sign-in", data={"key": town.keys["ada"]})
    assert town.http.get("/console/").status_code == 200
    assert town.http.get("/api/v1/me").status_code == 401
    assert town.http.get("/v1/models").status_code == 401


@given(st.dictionaries(st.text(max_size=5).filter(lambda t: "\x00" not in t), st.integers(-9, 9) | st.none()))
def test_plain_json_objects_pass_the_reader(value: dict[str, Any]) -> None:
    """Whatever is a plain object comes through the strict reader unchanged."""
    assert parse_json_object(json.dumps(value).encode()) == value


@given(st.binary(max_size=60))
def test_reader_never_fails_otherwise(raw: bytes) -> None:
    """Any bytes are an object or a MalformedBody, never another error."""
    with contextlib.suppress(MalformedBody):
        assert isinstance(parse_json_object(raw), dict)


class _Cookie:
    """A request with nothing but a session cookie."""

    def __init__(self, session_id: str) -> None:
        self.cookies = {"marketplace_session": session_id}


def test_sessions_end_by_idleness_age_and_number() -> None:
    """A session ends an hour after its last page, after a working day, and when there are too many."""
    now = [0.0]
    sessions = Sessions(clock=lambda: now[0])

    def start() -> Any:
        made = sessions.open(credential="mk_x", name="n", tenant="t", roles=frozenset())
        return _Cookie(made)

    idle, busy = start(), start()
    while now[0] < LONGEST_S:
        assert sessions.find(busy) is not None
        now[0] += IDLE_S - 1
    assert sessions.find(idle) is None
    now[0] = LONGEST_S + 1
    assert sessions.find(busy) is None
    first = start()
    for _ in range(MAX_SESSIONS):
        now[0] += 0.001
        last = start()
    assert sessions.find(first) is None
    assert sessions.find(last) is not None
    sessions.close_credential("mk_x")
    assert sessions.find(last) is None


def test_loop_is_not_blocked_by_uploads(town: Any) -> None:
    """While a large file is inspected the door still answers others."""
    content = b"".join(json.dumps({"id": f"d{n}", "text": "x" * 50}).encode() + b"\n" for n in range(3000))

    async def both() -> tuple[int, int]:
        sent = asyncio.to_thread(
            town.upload, "ada", "/datasets", content, "application/x-ndjson", name="large", license="MIT"
        )
        asked = asyncio.to_thread(town.http.get, "/healthz")
        first, second = await asyncio.gather(sent, asked)
        return first.status_code, second.status_code

    assert asyncio.run(both()) == (201, 200)

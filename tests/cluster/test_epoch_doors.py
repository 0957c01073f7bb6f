# SPDX-License-Identifier: Apache-2.0
"""Epochs over HTTP: entity tags of snapshots, and the stream that misses no publication."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.gateway import epochs
from cluster.gateway.description import describe
from cluster.gateway.tags import matches
from cluster.operations.catalogue import OPERATIONS
from model_core.packing.canonical import canonical_bytes
from policy.facts.snapshot import Snapshot


@pytest.fixture(autouse=True)
def short_silences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams look often, so that no test waits."""
    plain = epochs.EpochFeed.__init__

    def quick(self: Any, door: Any, **_: Any) -> None:
        plain(self, door, look_s=0.01, heartbeat_s=0.05)

    monkeypatch.setattr(epochs.EpochFeed, "__init__", quick)


def _events(lines: Iterator[str], wanted: int) -> list[dict[str, Any]]:
    """The next events of a stream, comments left out."""
    found: list[dict[str, Any]] = []
    one: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name in {"id", "event", "data"}:
            one[name] = value
        elif not line and "event" in one:
            found.append(one)
            one = {}
            if len(found) == wanted:
                return found
    return found


def _stream(town: Any, who: str, **options: Any) -> Any:
    headers = {"Authorization": f"Bearer {town.keys[who]}"} | options.pop("headers", {})
    return town.http.stream("GET", "/api/v1/epochs/stream", headers=headers, **options)


def _described() -> dict[str, Any]:
    found: dict[str, Any] = describe(OPERATIONS)["paths"]["/api/v1/epochs/stream"]["get"]
    return found


def test_a_snapshot_is_known_by_its_root(town: Any) -> None:
    """The entity tag is the digest that was published; who has that snapshot is not sent it again."""
    first = town.ask("carol", "GET", "/epochs/2/snapshot")
    digest = Snapshot.from_json(canonical_bytes(first.json())).digest
    assert first.headers["etag"] == f'"{digest}"'
    assert town.get("dev", "/epochs/2")["snapshot_digest"] == digest
    for sent, status in (
        (f'"{digest}"', 304),
        (f'W/"x", "{digest}"', 304),
        ("*", 304),
        ('"other"', 200),
        (digest, 200),
    ):
        again = town.ask("carol", "GET", "/epochs/2/snapshot", headers={"If-None-Match": sent})
        assert again.status_code == status
        assert again.headers["etag"] == first.headers["etag"]
        assert bool(again.content) == (status == 200)


def test_a_tag_opens_nothing(town: Any) -> None:
    """Whoever may not read a snapshot is refused with the right tag as without."""
    tag = town.ask("carol", "GET", "/epochs/1/snapshot").headers["etag"]
    for headers in ({}, {"If-None-Match": tag}):
        answer = town.ask("ada", "GET", "/epochs/1/snapshot", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "role_required")
    assert town.ask("carol", "GET", "/epochs/99/snapshot").status_code == 404
    assert town.ask("carol", "GET", "/epochs/x/snapshot").status_code == 422


def test_epochs_are_listed_without_gaps(town: Any) -> None:
    """Each epoch after a number, once, with the digest that its snapshot has."""
    rows = town.get("dev", "/epochs")["items"]
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert town.get("dev", "/epochs", after=1, limit=1)["items"] == rows[1:2]
    assert town.get("dev", "/epochs/current")["epoch"] == rows[-1]["epoch"]


def test_the_stream_tells_every_publication_and_resumes(town: Any) -> None:
    """What was published before and what is published meanwhile arrives in order; a resumed one goes on."""
    known = town.get("dev", "/epochs")["items"]
    with _stream(town, "dev") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        old = _events(lines, len(known))
        published = town.post("ada", f"/consents/{town.ids['consent']}/withdraw")
        (new,) = _events(lines, 1)
    assert [json.loads(one["data"]) for one in old] == known
    assert [one["id"] for one in old] == [str(row["epoch"]) for row in known]
    assert json.loads(new["data"])["snapshot_digest"] == published["snapshot_digest"]
    headers = {"Last-Event-ID": str(published["epoch"] - 1)}
    with _stream(town, "dev", headers=headers, params={"after": 0}) as answer:
        assert _events(answer.iter_lines(), 1) == [new]


def test_a_quiet_stream_says_that_it_lives_and_ends_with_its_key(town: Any) -> None:
    """Comments keep a silent connection open; a revoked key ends it with a problem."""
    last = town.get("dev", "/epochs/current")["epoch"]
    with _stream(town, "dev", params={"after": last}) as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith(":"))
        town.post("operator", f"/keys/{town.ids['key-dev']}/revoke")
        (told,) = _events(lines, 1)
        assert told["event"] == "problem"
        assert json.loads(told["data"])["code"] == "key_revoked"
        assert list(lines) == []


@pytest.mark.parametrize("bad", [{"after": "x"}, {"after": "-1"}, {"after": "9" * 30}, {"before": "1"}])
def test_a_stream_that_begins_nowhere_is_refused(town: Any, bad: dict[str, str]) -> None:
    """The place to begin is a number; the description names the refusal."""
    assert town.ask("dev", "GET", "/epochs/stream", params=bad).status_code == 422
    assert "422" in _described()["responses"]


def test_the_stream_is_described(town: Any) -> None:
    """What opens, what refuses and what may be said is what the description of the API says."""
    described = _described()
    with _stream(town, "dev", params={"after": 0}) as answer:
        said = described["responses"][str(answer.status_code)]
        assert answer.headers["content-type"].partition(";")[0] in said["content"]
    refused = town.http.get("/api/v1/epochs/stream")
    assert refused.headers["content-type"] in described["responses"][str(refused.status_code)]["content"]
    assert [one["name"] for one in described["parameters"]] == ["after", "Last-Event-ID"]


def test_streams_are_bounded(town: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When every place is taken the next one is told to come again, and a place that is left is free."""
    monkeypatch.setattr(epochs, "MAX_STREAMS", 1)
    with _stream(town, "dev") as answer:
        lines = answer.iter_lines()
        next(lines)
        refused = town.ask("ada", "GET", "/epochs/stream")
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
        assert int(refused.headers["retry-after"]) >= 1
    for _ in range(1000):  # the door hears a little later that the client has left
        with _stream(town, "ada") as again:
            if again.status_code == 200:
                return
    pytest.fail("the place was never given back")


def test_tags_are_compared_by_what_they_hold() -> None:
    """A weak mark does not matter, a star names everything, no header and no form name nothing."""
    assert matches('"a", W/"b"', "b")
    assert matches("*", "anything")
    assert not matches(None, "a")
    assert not matches("a", "a")
    assert matches('"7"', 7)

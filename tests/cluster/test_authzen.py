# SPDX-License-Identifier: Apache-2.0
"""AuthZEN's Authorization API: the decisions of the marketplace in the standard's words, and nothing more."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cluster.gateway.authzen_shapes import Evaluation, question_of
from policy.facts.terms import ACTIONS

CONTEXT = {"purpose": "research", "region": "eu", "commercial": False}


def _ask(town: Any, who: str, path: str, **options: Any) -> Any:
    headers = {"Authorization": f"Bearer {town.keys[who]}"} | options.pop("headers", {})
    method = options.pop("method", "POST")
    return town.http.request(method, f"/access/v1{path}", headers=headers, **options)


def _evaluation(town: Any, **changes: Any) -> dict[str, Any]:
    return {
        "subject": {"type": "tenant", "id": "apps"},
        "action": {"name": "infer"},
        "resource": {"type": "expert", "id": town.ids["expert"]},
        "context": dict(CONTEXT),
    } | changes


def test_a_decision_comes_with_what_it_rests_on(town: Any) -> None:
    """A permit and a denial say epoch, codes and reasons, as an explanation to the same key does."""
    permit = _ask(town, "dev", "/evaluation", json=_evaluation(town)).json()
    assert permit["decision"] is True
    said = town.post("dev", "/compositions/explain", **CONTEXT, candidates=[town.ids["expert"]])
    assert permit["context"]["reasons"] == said["experts"][0]["reasons"]
    assert permit["context"]["snapshot_digest"] == said["snapshot_digest"]
    other = {"context": CONTEXT | {"purpose": "sales"}}
    deny = _ask(town, "dev", "/evaluation", json=_evaluation(town, **other)).json()
    assert deny["decision"] is False
    assert deny["context"]["nearest_miss"]


def test_endpoints_and_sets_can_be_asked_about(town: Any) -> None:
    """A deployment brings its own use; a composition is its candidates together."""
    subject = {"type": "deployment", "id": "notes-research"}
    one = _evaluation(town, subject=subject, context={})
    assert _ask(town, "dev", "/evaluation", json=one).json()["decision"] is True
    whole = _evaluation(town, resource={"type": "composition"})
    answer = _ask(town, "dev", "/evaluation", json=whole).json()
    assert answer["decision"] is True
    assert [row["expert_id"] for row in answer["context"]["members"]] == [town.ids["expert"]]
    none = _evaluation(town, resource={"type": "composition", "properties": {"candidates": []}})
    assert _ask(town, "dev", "/evaluation", json=none).json()["context"]["members"] == []


@pytest.mark.parametrize(
    ("semantic", "decisions"),
    [
        ("execute_all", [True, False, True, False]),
        ("deny_on_first_deny", [True, False]),
        ("permit_on_first_permit", [True]),
    ],
)
def test_batches_stop_where_they_say(town: Any, semantic: str, decisions: list[bool]) -> None:
    """What an evaluation leaves out is the batch's; what cannot be understood is denied."""
    batch = _evaluation(
        town,
        evaluations=[
            {},
            {"action": {"name": "export_weights"}},
            {"context": CONTEXT | {"region": "de"}},
            {"resource": {"type": "document", "id": "1"}},
        ],
        options={"evaluations_semantic": semantic},
    )
    found = _ask(town, "dev", "/evaluations", json=batch).json()["evaluations"]
    assert [one["decision"] for one in found] == decisions
    if len(found) == 4:
        assert found[3]["context"]["error"]["status"] == 400


def test_a_batch_of_none_is_one_evaluation(town: Any) -> None:
    """Without evaluations the answer has the form of a single decision."""
    assert _ask(town, "dev", "/evaluations", json=_evaluation(town)).json()["decision"] is True


def test_searches_find_what_evaluations_permit(town: Any) -> None:
    """Each search answers exactly the things for which the evaluation says yes, in pages."""
    asked = _evaluation(town, resource={"type": "expert"})
    found = _ask(town, "dev", "/search/resource", json=asked).json()
    assert found == {"results": [{"type": "expert", "id": town.ids["expert"]}], "page": {"next_token": ""}}
    actions = _evaluation(town)
    del actions["action"]
    names = [one["name"] for one in _ask(town, "dev", "/search/action", json=actions).json()["results"]]
    for name in ACTIONS:
        said = _ask(town, "dev", "/evaluation", json=_evaluation(town, action={"name": name})).json()
        assert said["decision"] == (name in names)
    subjects: list[str] = []
    token = ""
    while True:
        asked = _evaluation(town, subject={"type": "tenant"}, page={"limit": 2, "token": token})
        part = _ask(town, "carol", "/search/subject", json=asked).json()
        subjects += [one["id"] for one in part["results"]]
        token = part["page"]["next_token"]
        if not token:
            break
    assert subjects == ["apps"]
    own = _evaluation(town, subject={"type": "deployment"}, context={})
    assert _ask(town, "dev", "/search/subject", json=own).json()["results"] == [
        {"type": "deployment", "id": "notes-research"}
    ]
    assert _ask(town, "eve", "/search/subject", json=own).json()["results"] == []


def test_others_uses_and_endpoints_are_denials(town: Any) -> None:
    """A stranger learns nothing about another tenant's permissions, nor which of its endpoints exist."""
    foreign = _ask(town, "eve", "/evaluation", json=_evaluation(town)).json()
    assert foreign["decision"] is False
    assert set(foreign["context"]) == {"error"}

    def said(name: str) -> Any:
        subject = {"type": "deployment", "id": name}
        return _ask(town, "eve", "/evaluation", json=_evaluation(town, subject=subject)).json()["decision"]

    assert said("notes-research") is said("no-such-desk") is False


BAD: list[dict[str, Any]] = [
    {"context": CONTEXT | {"device": "phone"}},
    {"context": {"purpose": "research"}},
    {"context": CONTEXT | {"time": "yesterday"}},
    {"context": CONTEXT | {"time": "2026-01-01T00:00:00"}},
    {"context": CONTEXT | {"purpose": {"any": "of"}}},
    {"subject": {"type": "user", "id": "alice"}},
    {"subject": {"type": "tenant"}},
    {"subject": {"type": "tenant", "id": "apps", "properties": {"department": "sales"}}},
    {"action": {"name": "infer", "properties": {"soft": True}}},
    {"resource": {"type": "composition", "properties": {"candidates": [1]}}},
    {"resource": None},
    {"unknown": 1},
]


def test_what_would_be_lost_on_the_way_is_refused(town: Any) -> None:
    """An attribute that is not understood is a bad request with a sentence, never an ignored condition."""
    for changes in BAD:
        answer = _ask(town, "dev", "/evaluation", json=_evaluation(town, **changes))
        assert answer.status_code == 400, (changes, answer.text)
        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.text.endswith(".")
        assert answer.headers["x-marketplace-code"]


def test_the_door_is_shut_without_a_key_and_names_itself_with_one(town: Any) -> None:
    """Every address asks for a key; the metadata names each endpoint, and a request's own id comes back."""
    for path in ("/evaluation", "/evaluations", "/search/subject", "/search/resource", "/search/action"):
        assert town.http.post(f"/access/v1{path}", json={}).status_code == 401
    known = "/.well-known/authzen-configuration"
    assert town.http.get(known).status_code == 401
    key = {"Authorization": f"Bearer {town.keys['eve']}"}
    told = town.http.get(known, headers=key).json()
    assert told["policy_decision_point"] == town.url
    answer = town.http.post(
        told["access_evaluation_endpoint"], json=_evaluation(town), headers=key | {"X-Request-ID": "mine-1"}
    )
    assert answer.headers["x-request-id"] == "mine-1"
    assert len(told) == 6


def test_moments_are_exact() -> None:
    """A time with an offset becomes its microsecond."""
    moment = datetime(2026, 1, 31, 12, 0, 0, 123456, UTC)
    asked = Evaluation.model_validate(
        {
            "subject": {"type": "tenant", "id": "t"},
            "action": {"name": "infer"},
            "resource": {"type": "composition"},
            "context": {"time": moment.astimezone().isoformat()},
        }
    )
    whole = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert question_of(asked)["at_us"] == whole

# SPDX-License-Identifier: Apache-2.0
"""Questions about compositions over HTTP: decided, explained, supposed, cut to the viewer."""

from __future__ import annotations

import json
from typing import Any

import pytest

USE = {"purpose": "research", "region": "eu", "commercial": False}


def _expert(document: dict[str, Any], expert_id: str) -> dict[str, Any]:
    (found,) = [one for one in document["experts"] if one["expert_id"] == expert_id]
    return found


def test_a_use_is_decided_as_a_deployment_of_it_is(town: Any) -> None:
    """Asked by deployment or spelled out, the answer is the composition that the deployment runs."""
    by_name = town.post("dev", "/compositions/decide", deployment="notes-research")
    spelled = town.post("dev", "/compositions/decide", **USE)
    runs = town.get("dev", "/deployments/notes-research")["composition"]
    for said in (by_name, spelled):
        assert said["verdict"] == "permit"
        assert said["composition_digest"] == runs["digest"]
        assert said["epoch"] == runs["epoch"]
        assert _expert(said, town.ids["expert"])["codes"] == ["identity_holds"] + [
            f"{gate}_permits" for gate in ("consent", "grant", "license", "rule")
        ]


def test_equal_questions_have_equal_digests_whoever_asks(town: Any) -> None:
    """The digests are of the uncut answer, so that a consumer and staff can compare what they were told."""
    ask = USE | {"tenant": "apps", "at_us": 1_900_000_000_000_000}
    to_dev, to_staff = (town.post(who, "/compositions/explain", **ask) for who in ("dev", "carol"))
    assert to_dev["output_digest"] == to_staff["output_digest"]
    assert to_dev["input_digest"] == to_staff["input_digest"]
    assert town.post("dev", "/compositions/decide", **ask)["output_digest"] == to_dev["output_digest"]
    moved = town.post("dev", "/compositions/decide", **ask | {"region": "us"})
    assert moved["input_digest"] != to_dev["input_digest"]


def test_denials_name_the_nearest_miss(town: Any) -> None:
    """An explanation says which gates are shut and what would open each of them."""
    said = town.post("dev", "/compositions/explain", **USE | {"purpose": "education"})
    found = _expert(said, town.ids["expert"])
    assert found["verdict"] == "deny"
    assert "no_consent" in found["codes"]
    assert {miss["gate"] for miss in found["nearest_miss"]} >= {"consent", "rules"}
    assert all(miss["ask"] in {"north", "compliance"} for miss in found["nearest_miss"])


def test_a_private_prohibition_is_withheld_from_everybody_but_its_owner(town: Any) -> None:
    """The consumer reads that the provider refuses, the owner and the staff read what was said."""
    town.post("ada", "/consents/forbid", expert_id=town.ids["expert"], purpose="research", recipient="apps")
    ask = {"deployment": "notes-research"}
    to_dev = town.post("dev", "/compositions/explain", **ask)
    assert "consent_withheld" in _expert(to_dev, town.ids["expert"])["codes"]
    assert "consent_forbids" not in json.dumps(to_dev)
    assert town.ids["consent"] not in json.dumps(to_dev)
    to_staff = town.post("carol", "/compositions/explain", **ask)
    assert "consent_forbids" in _expert(to_staff, town.ids["expert"])["codes"]


def test_experts_that_are_not_offered_stay_hidden(town: Any) -> None:
    """A suspended expert and one that never was cannot be told apart by naming them."""
    town.post("ada", f"/experts/{town.ids['expert']}/suspend")
    missing = town.ids["expert"][:-4] + "0000"
    answers = []
    for name in (town.ids["expert"], missing):
        said = town.post("dev", "/compositions/explain", **USE, candidates=[name])
        assert said["question"].pop("candidates") == [name]
        answers.append({k: v for k, v in said.items() if k not in {"at_us", "input_digest", "output_digest"}})
        answers[-1]["question"].pop("at_us")
    assert answers[0] == answers[1]
    assert answers[0]["hidden_experts"] == 1


def test_nobody_asks_for_another_tenant_or_a_foreign_deployment(town: Any) -> None:
    """A tenant's own uses are its own to ask about; a foreign endpoint does not exist."""
    foreign = town.ask("eve", "POST", "/compositions/decide", json={**USE, "tenant": "apps"})
    assert (foreign.status_code, foreign.json()["code"]) == (403, "role_required")
    other = town.ask("eve", "POST", "/compositions/explain", json={"deployment": "notes-research"})
    assert other.status_code == 404


def test_what_is_supposed_is_answered_and_nothing_is_kept(town: Any) -> None:
    """A supposed consent and rule let the expert in, a supposed withdrawal takes it out; no row is new."""
    before = town.state()
    ask = USE | {"purpose": "education"}
    items = [
        {"kind": "consent.give", "expert_id": town.ids["expert"], "purpose": "education"},
        {"kind": "rule.permit", "purpose": "education", "text": "Try it."},
    ]
    wide = town.post("dev", "/compositions/simulate", **ask, suppose={"items": items})
    assert wide["gained"] == [town.ids["expert"]]
    assert wide["before"]["members"] == []
    gone = {"without": [town.ids["consent"]]}
    narrow = town.post("ada", "/compositions/simulate", **ask | {"purpose": "research"}, suppose=gone)
    assert narrow["before"]["hidden_experts"] == narrow["after"]["hidden_experts"] == 0
    lost = town.post("carol", "/compositions/simulate", deployment="notes-research", suppose=gone)
    assert lost["lost"] == [town.ids["expert"]]
    assert town.state() == before


@pytest.mark.parametrize("who", ["dev", "eve"])
def test_a_supposition_brings_nothing_hidden_to_light(town: Any, who: str) -> None:
    """Others' consents cannot be supposed away, and hidden experts cannot be supposed onto the market."""
    town.post("ada", f"/experts/{town.ids['expert']}/suspend")
    tries = [
        {"without": [town.ids["consent"]]},
        {"without": ["con_" + "0" * 32]},
        {"items": [{"kind": "expert.resume", "expert_id": town.ids["expert"]}]},
        {"items": [{"kind": "expert.resume", "expert_id": "exp_" + "0" * 32}]},
    ]
    answers = [
        town.ask(who, "POST", "/compositions/simulate", json={**USE, "suppose": one}).json() for one in tries
    ]
    assert {one["code"] for one in answers} == {"object_unknown"}
    assert answers[0]["detail"] == answers[1]["detail"]
    assert answers[2]["detail"] == answers[3]["detail"]

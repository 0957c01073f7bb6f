# SPDX-License-Identifier: Apache-2.0
"""Cards over HTTP: drafts that are proposed by hand, and consents that leave as ODRL and read back."""

from __future__ import annotations

from typing import Any


def test_a_card_changes_nothing_until_its_drafts_are_approved(town: Any) -> None:
    """Importing writes no row; what is proposed of it takes a second person like any other consent."""
    before = town.state()
    card = {"@type": "Dataset", "usageInfo": {"@id": "http://purl.obolibrary.org/obo/DUO_0000004"}}
    told = town.post("ada", "/datasets/cards", document=card, expert_id=town.ids["expert"])
    assert told["kind"] == "croissant"
    assert [one["purpose"] for one in told["items"]] == ["any"]
    assert town.state() == before
    drafted = town.post("ada", "/changes", title="Terms of the card", items=told["items"])
    own = town.ask("ada", "POST", f"/changes/{drafted['id']}/approve", json={"digest": drafted["digest"]})
    assert own.json()["code"] == "self_approval"
    town.approve("bob", drafted)
    assert [row["purpose"] for row in town.get("ada", "/consents")["items"]].count("any") == 1


def test_a_consent_leaves_as_odrl_and_reads_back(town: Any) -> None:
    """The policy of a consent is a card whose draft says the same, for its owner and staff alone."""
    told = town.get("ada", f"/consents/{town.ids['consent']}/odrl")["policy"]
    again = town.post("ada", "/datasets/cards", document=told, expert_id=town.ids["expert"])
    (row,) = [one for one in town.get("ada", "/consents")["items"] if one["id"] == town.ids["consent"]]
    (item,) = again["items"]
    kept = ("action", "purpose", "region", "recipient", "commercial", "valid_from_us", "valid_until_us")
    assert {name: item[name] for name in kept} == {name: row[name] for name in kept}
    assert again["not_imported"] == []
    assert town.get("carol", f"/consents/{town.ids['consent']}/odrl")["policy"] == told
    assert town.ask("sue", "GET", f"/consents/{town.ids['consent']}/odrl").status_code == 404


def test_a_hostile_card_is_refused_over_http(town: Any) -> None:
    """A card that hides or contradicts something is a problem with a stable code."""
    hidden = {"@type": "Dataset", "name": "a\u202eb"}
    answer = town.ask("ada", "POST", "/datasets/cards", json={"document": hidden})
    assert (answer.status_code, answer.json()["code"]) == (422, "card_refused")
    large = {"@type": "Dataset", "keywords": ["k"] * 6000}
    answer = town.ask("ada", "POST", "/datasets/cards", json={"document": large})
    assert (answer.status_code, answer.json()["code"]) == (413, "card_too_large")

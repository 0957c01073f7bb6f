# SPDX-License-Identifier: Apache-2.0
"""The table of operations: well formed, and open to exactly the roles that it names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.operations.catalogue import OPERATIONS
from cluster.operations.table import Operation, Page
from tenants.roles import Role

#: Who holds which single role in the town; every role is held by exactly one of them.
HOLDERS = {
    Role.OPERATOR: "operator",
    Role.COMPLIANCE: "carol",
    Role.OWNER: "ada",
    Role.DEVELOPER: "dev",
    Role.AUDITOR: "aud",
}


def test_names_and_routes_are_unique() -> None:
    """No two rows answer to the same name or to the same method and path."""
    routes = [(row.method, row.path) for row in OPERATIONS.values()]
    assert len(set(routes)) == len(routes)
    assert all(name == row.name for name, row in OPERATIONS.items())


@pytest.mark.parametrize("row", OPERATIONS.values(), ids=lambda row: row.name)
def test_row_is_well_formed(row: Operation) -> None:
    """A row says what it does in a sentence, names roles, and its example validates."""
    assert row.summary[0].isupper()
    assert row.summary.endswith(".")
    assert row.roles
    fields = row.request.model_fields
    assert set(row.placeholders) <= fields.keys()
    assert ("upload" in fields) == (row.upload is not None)
    if row.upload is None:
        row.request.model_validate(dict(row.example))
    assert row.request.model_config["frozen"]
    assert row.request.model_config["extra"] == "forbid"


@pytest.mark.parametrize("row", OPERATIONS.values(), ids=lambda row: row.name)
def test_lists_come_in_pages(row: Operation) -> None:
    """Whatever lists without a bound of its own takes a page."""
    if row.name.endswith(".list"):
        assert issubclass(row.request, Page)
        assert "next" in row.response.model_fields


def _attempt(town: Any, who: str, row: Operation) -> Any:
    # Ids that exist nowhere: whoever passes the role is then refused for the object, and nothing changes.
    path = row.path
    for name in row.placeholders:
        path = path.replace("{" + name + "}", str(row.example[name]).replace(":", "%3A"))
    if row.method == "GET":
        return town.ask(who, "GET", path)
    if row.upload is not None:
        # Not a file of the announced kind: the role is looked at first.
        return town.upload(who, path, b"x", "text/plain")
    return town.ask(who, row.method, path, json={"unknown_field_of_the_role_test": 1})


def test_every_operation_opens_to_its_roles_alone(town: Any) -> None:
    """Each role gets past the role check of exactly the operations whose rows name it."""
    before = town.state()
    wrong = []
    for row in OPERATIONS.values():
        for role, who in HOLDERS.items():
            answer = _attempt(town, who, row)
            refused_by_role = answer.status_code == 403 and answer.json()["code"] == "role_required"
            if refused_by_role == (role in row.roles):
                wrong.append((row.name, role, answer.status_code))
    assert not wrong
    assert town.state() == before


def test_key_without_roles_of_the_row_is_told_which_it_needs(town: Any) -> None:
    """The refusal names the roles that may, so that people know whom to ask."""
    answer = town.ask("dev", "POST", "/tenants", json={"slug": "x", "title": "X"})
    assert answer.status_code == 403
    assert answer.json()["facts"]["roles"] == ["operator"]


def test_idempotency_key_repeats_the_first_answer(town: Any) -> None:
    """The same key with the same document answers the first job again; another document is refused."""
    body = {"name": "again", "dataset_id": town.ids["dataset"], "recipe": {"steps": 3}}
    headers = {"Idempotency-Key": "once"}
    first = town.ask("ada", "POST", "/jobs", json=body, headers=headers)
    second = town.ask("ada", "POST", "/jobs", json=body, headers=headers)
    other = town.ask("ada", "POST", "/jobs", json=body | {"name": "other"}, headers=headers)
    assert first.status_code == second.status_code == 201
    assert first.json()["id"] == second.json()["id"]
    assert other.status_code == 409
    assert len(town.get("ada", "/jobs")["items"]) == 1


def test_secret_answers_are_not_kept_for_repeats(town: Any) -> None:
    """A key's secret is stored nowhere, not even to answer a repeated request."""
    body = {"tenant": "apps", "principal": "bot", "roles": ["developer"]}
    made = town.ask("operator", "POST", "/keys", json=body, headers={"Idempotency-Key": "k"})
    secret = made.json()["secret"].encode()
    again = town.ask("operator", "POST", "/keys", json=body, headers={"Idempotency-Key": "k"})
    assert again.status_code != 200 or again.json().get("secret") != secret.decode()
    assert all(secret not in path.read_bytes() for path in town.home.root.rglob("*") if path.is_file())


def test_pages_join_to_the_whole_list(town: Any) -> None:
    """Following ``next`` with pages of two gives the same rows as one page, in the same order."""
    whole = [row["slug"] for row in town.get("operator", "/tenants")["items"]]
    parts: list[str] = []
    after = None
    while True:
        page = town.get("operator", "/tenants", limit=2, **({"after": after} if after else {}))
        parts += [row["slug"] for row in page["items"]]
        after = page["next"]
        if after is None:
            break
    assert parts == whole
    assert len(whole) >= 5


def test_writes_are_chained_and_reads_are_not(town: Any) -> None:
    """Every write leaves one audit record with its author and object; reads leave none."""
    before = len(town.get("aud", "/audit/records", limit=1000)["items"])
    town.get("ada", "/consents")
    made = town.post("operator", "/tenants", slug="chained", title="Chained")
    records = town.get("aud", "/audit/records", limit=1000)["items"]
    assert len(records) == before + 1
    assert records[-1]["action"] == "tenants.create"
    assert records[-1]["facts"]["slug"] == made["slug"]
    assert town.post("aud", "/audit/verify")["ok"]


def test_checkpoint_proves_the_tail(town: Any) -> None:
    """A kept checkpoint makes the verifier say that the tail is proven."""
    kept = town.post("aud", "/audit/checkpoint")
    town.post("operator", "/tenants", slug="later", title="Later")
    report = town.post("aud", "/audit/verify", checkpoints=[kept])
    assert report["ok"]
    assert report["tail"] == "proven"


def test_withdrawal_is_one_act_and_empties_the_composition(town: Any) -> None:
    """An owner withdraws alone; the next look at the deployment says why the expert is out."""
    published = town.post("ada", f"/consents/{town.ids['consent']}/withdraw")
    shown = town.get("dev", "/deployments/notes-research")
    assert shown["composition"]["members"] == []
    assert shown["composition"]["epoch"] == published["epoch"]
    (decision,) = shown["composition"]["decisions"]
    assert decision["verdict"] == "deny"
    assert any(reason["gate"] == "consent" for reason in decision["reasons"])


def test_widening_needs_a_second_person(town: Any) -> None:
    """The author cannot approve; another owner of the tenant can; a digest that was not read cannot be."""
    drafted = town.post("ada", "/consents", expert_id=town.ids["expert"], purpose="education")
    alone = town.ask("ada", "POST", f"/changes/{drafted['id']}/approve", json={"digest": drafted["digest"]})
    assert alone.status_code == 403
    blind = town.ask(
        "bob", "POST", f"/changes/{drafted['id']}/approve", json={"digest": "sha256:" + "0" * 64}
    )
    assert blind.status_code == 409
    assert town.approve("bob", drafted)["epoch"] > 1


def test_catalogue_is_redacted_by_viewer(town: Any) -> None:
    """Strangers see a listed expert's terms but not its lineage; unlisted experts do not exist for them."""
    seen = town.get("dev", f"/experts/{town.ids['expert']}")
    assert seen["license"] == "MIT"
    assert seen["dataset_ids"] is None
    assert seen["metrics"] is None
    assert town.get("ada", f"/experts/{town.ids['expert']}")["dataset_ids"] == [town.ids["dataset"]]
    town.post("ada", f"/experts/{town.ids['expert']}/suspend")
    assert town.ask("dev", "GET", f"/experts/{town.ids['expert']}").status_code == 404
    assert town.get("dev", "/experts")["items"] == []


def test_consumer_reads_reasons_without_foreign_facts(town: Any) -> None:
    """Reasons name the ids of an owner's consents to that owner, and not to the consumer."""
    to_consumer = json.dumps(town.get("dev", "/deployments/notes-research"))
    to_owner = json.dumps(town.get("ada", "/deployments/notes-research"))
    assert town.ids["consent"] not in to_consumer
    assert town.ids["consent"] in to_owner

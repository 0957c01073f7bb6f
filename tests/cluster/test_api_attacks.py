# SPDX-License-Identifier: Apache-2.0
"""Attacks on the API by people with a key, tried and refused: escalation, replays, SQL, clocks."""

from __future__ import annotations

import itertools
import json
from typing import Any

from cluster.office import desk as desks
from cluster.operations.catalogue import OPERATIONS
from cluster.operations.table import Operation
from policy.facts.snapshot import Snapshot
from tenants.roles import PLATFORM_ROLES, Role
from tests.cluster.attack_world import body_of, found_victim, intruders, path_of, send

PLATFORM_KEYS = {Role.OPERATOR: "operator", Role.COMPLIANCE: "carol", Role.AUDITOR: "aud"}

#: Texts that would end a statement, begin another or widen a condition, had they ever been part of one.
SQL = (
    "' OR '1'='1",
    "'; DROP TABLE consents; --",
    '" OR ""="',
    "x' UNION SELECT secret_hash, 1 FROM api_keys --",
    "1); DELETE FROM audit WHERE (1=1",
    "%' OR 1=1 --",
    "\\'; SELECT pg_sleep(10); --",
    "north'/**/OR/**/tenant<>'",
    "%",
    "_" * 40,
)


# -- roles -------------------------------------------------------------------------------------------------


def test_no_key_reaches_beyond_its_roles(town: Any) -> None:
    """Every operation refuses every set of a tenant's roles, and each of the platform's, not in its row."""
    held = {who: set(who.split("-")[1:]) for who in intruders(town)}
    held |= {who: {str(role)} for role, who in PLATFORM_KEYS.items()}
    before = town.state()
    wrong = []
    for row, (who, roles) in itertools.product(OPERATIONS.values(), held.items()):
        if roles & {str(role) for role in row.roles}:
            continue
        answer = send(town, who, row, {})
        if (answer.status_code, answer.json()["code"]) != (403, "role_required"):
            wrong.append((row.name, who, answer.status_code))
    assert not wrong
    assert town.state() == before


def test_no_key_makes_a_key_with_more_than_it_has(town: Any) -> None:
    """Keys are made by operators alone, and no tenant but the platform can hold the platform's roles."""
    names = intruders(town)
    before = town.state()
    for who in [*names, "carol", "aud", "dev"]:
        for tenant, role in itertools.product(("south", "north", "platform"), Role):
            body = {"tenant": tenant, "principal": "me", "roles": [str(role)]}
            assert town.ask(who, "POST", "/keys", json=body).status_code == 403
    for role in PLATFORM_ROLES:
        for roles in ([str(role)], ["owner", str(role)]):
            body = {"tenant": "south", "principal": "sue", "roles": roles}
            answer = town.ask("operator", "POST", "/keys", json=body)
            assert (answer.status_code, answer.json()["code"]) == (422, "role_refused")
    assert town.state() == before


def test_oversight_gives_nobody_consent(town: Any) -> None:
    """The platform's own roles cannot speak for an owner: they narrow, and never permit an expert's use."""
    before = town.state()
    consent = {"kind": "consent.give", "expert_id": town.ids["expert"], "purpose": "sales"}
    grant = {"kind": "grant.give", "expert_id": town.ids["expert"], "consumer_tenant": "*"}
    for who in PLATFORM_KEYS.values():
        for item in (consent, grant):
            answer = town.ask(who, "POST", "/changes", json={"title": "t", "items": [item]})
            assert answer.status_code in {403, 404}, answer.text
        assert (
            town.ask(who, "POST", "/consents", json=body_of(OPERATIONS["consents.give"])).status_code == 403
        )
    assert town.state() == before


# -- four eyes ---------------------------------------------------------------------------------------------


def test_nobody_approves_their_own_change_with_any_of_their_keys(town: Any) -> None:
    """A second key of the same person, also one with other roles, is still the same person."""
    drafted = town.post("ada", "/consents", expert_id=town.ids["expert"], purpose="education")
    for roles in (["owner"], ["owner", "auditor"], ["owner", "developer"]):
        made = town.post("operator", "/keys", tenant="north", principal="ada", roles=roles)
        town.keys["second"] = made["secret"]
        before = town.state()
        answer = town.ask(
            "second", "POST", f"/changes/{drafted['id']}/approve", json={"digest": drafted["digest"]}
        )
        assert (answer.status_code, answer.json()["code"]) == (403, "self_approval")
        assert town.state() == before
    rule = town.post("carol", "/rules", text="All is well.", purpose="*")
    alone = town.ask("carol", "POST", f"/changes/{rule['id']}/approve", json={"digest": rule["digest"]})
    assert (alone.status_code, alone.json()["code"]) == (403, "self_approval")


def test_an_approval_holds_for_what_was_read_and_once(town: Any) -> None:
    """Another change's digest, an old one and a second approval publish nothing."""
    first = town.post("ada", "/consents", expert_id=town.ids["expert"], purpose="education")
    other = town.post("ada", "/consents", expert_id=town.ids["expert"], purpose="*")
    swapped = town.ask("bob", "POST", f"/changes/{other['id']}/approve", json={"digest": first["digest"]})
    assert (swapped.status_code, swapped.json()["code"]) == (409, "change_digest_differs")
    town.approve("bob", first)
    before = town.state()
    again = town.ask("bob", "POST", f"/changes/{first['id']}/approve", json={"digest": first["digest"]})
    assert (again.status_code, again.json()["code"]) == (409, "change_closed")
    assert town.state() == before


def test_equal_edits_have_different_digests(town: Any) -> None:
    """A digest names one draft: what was approved of one cannot be shown for its twin."""
    twins = [town.post("ada", "/consents", expert_id=town.ids["expert"], purpose="education") for _ in "ab"]
    assert twins[0]["digest"] != twins[1]["digest"]


# -- replayed credentials ----------------------------------------------------------------------------------


def test_a_revoked_key_opens_nothing_again(town: Any) -> None:
    """After its revocation every operation refuses the key alike."""
    town.post("operator", f"/keys/{town.ids['key-ada']}/revoke")
    before = town.state()
    for row in OPERATIONS.values():
        answer = send(town, "ada", row, {})
        assert (answer.status_code, answer.json()["code"]) == (401, "key_revoked"), row.name
    assert town.state() == before


def test_a_key_ends_at_its_moment(town: Any) -> None:
    """A key that expires is refused from the stated microsecond on, and never before."""
    end_us = desks.now_us() + 10**12
    body = {"tenant": "north", "principal": "ada", "roles": ["owner"], "expires_at_us": end_us}
    town.keys["short"] = town.post("operator", "/keys", **body)["secret"]
    for now_us, status in ((end_us - 1, 200), (end_us, 401), (end_us + 1, 401)):
        town.set_clock(now_us)
        assert town.ask("short", "GET", "/me").status_code == status


def test_a_repeat_key_is_one_persons_and_one_requests(town: Any) -> None:
    """Another payload is refused; another person's equal key neither reads nor repeats the first answer."""
    body = {"name": "once", "dataset_id": town.ids["dataset"], "recipe": {"steps": 1}}
    headers = {"Idempotency-Key": "k-1"}
    first = town.ask("ada", "POST", "/jobs", json=body, headers=headers)
    changed = town.ask("ada", "POST", "/jobs", json=body | {"name": "twice"}, headers=headers)
    assert (changed.status_code, changed.json()["code"]) == (409, "idempotency_conflict")
    elsewhere = town.ask("ada", "POST", "/consents", json={"expert_id": "*", "purpose": "*"}, headers=headers)
    assert elsewhere.status_code == 409
    foreign = town.ask("sue", "POST", "/jobs", json=body, headers=headers)
    assert foreign.status_code == 404
    assert first.json()["id"] not in foreign.text


def test_console_tokens_are_their_sessions_alone(town: Any) -> None:
    """A form token of a former session, of another session, or without its session carries out nothing."""

    def sign_in(who: str) -> tuple[Any, str]:
        answer = town.http.post("/console/sign-in", data={"key": town.keys[who]}, follow_redirects=False)
        cookie = answer.cookies["marketplace_session"]
        town.http.cookies.clear()
        page = town.http.get("/console/consents", headers={"Cookie": f"marketplace_session={cookie}"})
        town.http.cookies.clear()
        token = page.text.split('name="form_token" value="', 1)[1].split('"', 1)[0]
        return {"Cookie": f"marketplace_session={cookie}"}, token

    def withdraw(cookie: dict[str, str], token: str) -> int:
        path = f"/console/consents/{town.ids['consent']}/withdraw"
        answer = town.http.post(path, data={"form_token": token}, headers=cookie, follow_redirects=False)
        town.http.cookies.clear()
        return int(answer.status_code)

    ada, ada_token = sign_in("ada")
    bob, bob_token = sign_in("bob")
    before = town.state()
    assert withdraw(ada, bob_token) == 403
    assert withdraw({}, ada_token) in {303, 401, 403}
    town.http.post("/console/sign-out", data={"form_token": ada_token}, headers=ada, follow_redirects=False)
    town.http.cookies.clear()
    assert withdraw(ada, ada_token) in {303, 401, 403}
    assert town.state() == before
    assert withdraw(bob, bob_token) == 303
    assert town.state() != before


# -- SQL ---------------------------------------------------------------------------------------------------


def _texts(row: Operation) -> list[str]:
    """Fields of a row that take a text somewhere."""
    schema = row.request.model_json_schema()
    found = []
    for name, field in schema.get("properties", {}).items():
        text = json.dumps(field)
        if name != "upload" and ('"string"' in text or "$ref" in text):
            found.append(name)
    return found


def test_statements_in_any_field_are_plain_text(town: Any) -> None:
    """No address, filter or field makes a statement of a text: no 500, no row of others, nothing lost."""
    victim = found_victim(town)
    secrets = [victim[name] for name in ("consent", "dataset", "job", "change", "expert")]
    tables = set(town.state())
    published = town.get("carol", "/epochs/current")
    wrong = []
    turns = itertools.cycle(SQL)  # every text in many places, and every place with several
    for row in OPERATIONS.values():
        if row.noun in {"tenants", "keys", "ledger"} and row.writes:
            continue  # what an operator names so is an object of that name
        who = "sue" if Role.OWNER in row.roles else "eve" if Role.DEVELOPER in row.roles else "aud"
        for name, text in ((name, next(turns)) for name in _texts(row) for _ in range(2)):
            in_path = {name: text} if name in row.placeholders else {}
            answer = send(town, who, row, in_path, **({} if in_path else {name: text}))
            if answer.status_code >= 500 or (who != "aud" and any(one in answer.text for one in secrets)):
                wrong.append((row.name, name, text, answer.status_code, answer.text[:200]))
    assert not wrong
    assert set(town.state()) == tables
    snapshot = Snapshot.model_validate(town.get("carol", f"/epochs/{published['epoch']}/snapshot"))
    assert snapshot.digest == published["snapshot_digest"]
    assert town.post("aud", "/audit/verify")["ok"]


# -- clocks ------------------------------------------------------------------------------------------------


def test_a_clock_set_back_brings_nothing_back(town: Any) -> None:
    """With a clock a year behind, what was withdrawn stays so and published time never runs backwards."""
    town.post("ada", f"/consents/{town.ids['consent']}/withdraw")
    last = town.get("carol", "/epochs/current")
    key = town.post("operator", "/keys", tenant="north", principal="ada", roles=["owner"])
    town.post("operator", f"/keys/{key['id']}/revoke")
    town.keys["gone"] = key["secret"]
    town.set_clock(last["published_at_us"] - 365 * 86_400_000_000)
    assert town.get("dev", "/deployments/notes-research")["composition"]["members"] == []
    assert town.ask("gone", "GET", "/me").json()["code"] == "key_revoked"
    narrowed = town.post("ada", "/consents/forbid", expert_id=town.ids["expert"], purpose="research")
    assert narrowed["epoch"] == last["epoch"] + 1
    assert narrowed["at_us"] >= last["published_at_us"]
    assert town.post("aud", "/audit/verify")["ok"]


def test_paths_reach_no_other_route(town: Any) -> None:
    """Dots, slashes and encodings in an id stay an id: they neither leave the address nor reach a file."""
    for text in ("..", "../keys", "..%2Fkeys", "%2e%2e/keys", "a/b", "\u2025", "x" * 3000):
        for row in OPERATIONS.values():
            if row.placeholders and row.method == "GET":
                answer = town.ask("eve", "GET", path_of(row, **dict.fromkeys(row.placeholders, text)))
                assert answer.status_code in {400, 403, 404, 405, 414, 422}, (row.name, text)

# SPDX-License-Identifier: Apache-2.0
"""The workflow of a change over HTTP: drafts, moments of publication, who runs what was published."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.bootstrap import open_office
from cluster.errors import OfficeFault
from cluster.office import calendar
from cluster.office.calendar import publish_due, weigh_next
from cluster.office.desk import now_us
from model_core.errors import ProductError

HOUR_US = 3_600_000_000


def edits(town: Any) -> list[dict[str, Any]]:
    """A consent that the town has not."""
    return [{"kind": "consent.give", "expert_id": town.ids["expert"], "purpose": "education"}]


def test_a_draft_goes_from_writing_to_review(town: Any) -> None:
    """Drafted, edited by version, submitted under its id, and approved by the digest of its last version."""
    draft = town.post("ada", "/changes", title="one", items=edits(town), draft=True)
    path = f"/changes/{draft['id']}"
    assert (draft["state"], draft["version"], draft["preview"]) == ("draft", 1, None)
    assert town.get("bob", path)["state"] == "draft"
    assert draft["id"] in [row["id"] for row in town.get("ada", "/changes", state="draft")["items"]]
    edited = town.put("ada", path, version=1, title="two", items=edits(town))
    stale = town.ask("ada", "PUT", path, json={"version": 1, "title": "x", "items": edits(town)})
    assert (stale.status_code, stale.json()["code"]) == (409, "stale_draft")
    assert town.ask("bob", "POST", f"{path}/submit", json={"version": 2}).status_code == 403
    assert town.get("ada", f"{path}/preview")["deployments"]
    submitted = town.post("ada", f"{path}/submit", version=2)
    assert (submitted["state"], submitted["digest"]) == ("proposed", edited["digest"])
    assert town.ask("bob", "POST", f"{path}/approve", json={"digest": draft["digest"]}).status_code == 409
    assert town.approve("bob", submitted)["state"] == "approved"


def test_drafts_of_others_do_not_exist(town: Any) -> None:
    """Another tenant's answers about a draft are those about an id that nobody ever gave out."""
    draft = town.post("ada", "/changes", title="one", items=edits(town), draft=True)
    nowhere = "chg_0198f0c2a1b37c4e8d5f60718293a4b5"
    body = {"version": 1, "title": "x", "items": edits(town)}
    for method, tail, fields in (
        ("GET", "", None),
        ("GET", "/preview", None),
        ("GET", "/acknowledgements", None),
        ("PUT", "", body),
        ("POST", "/submit", {"version": 1}),
        ("POST", "/revise", {}),
        ("POST", "/withdraw", {}),
        ("POST", "/approve", {"digest": draft["digest"]}),
        ("POST", "/reject", {"comment": "no"}),
    ):
        theirs, none = (
            town.ask("sue", method, f"/changes/{one}{tail}", json=fields) for one in (draft["id"], nowhere)
        )
        assert theirs.status_code == none.status_code == 404, (method, tail)
        assert theirs.json()["detail"] == none.json()["detail"]
    assert draft["id"] not in [row["id"] for row in town.get("sue", "/changes")["items"]]


def test_the_office_publishes_on_time(town: Any) -> None:
    """Approved for a moment, the change waits, and the office publishes it then and not before."""
    moment = now_us() + HOUR_US
    change = town.post("ada", "/changes", title="later", items=edits(town), effective_at_us=moment)
    approved = town.approve("bob", change)
    assert (approved["state"], approved["epoch"]) == ("scheduled", None)
    epoch = town.get("ada", "/epochs/current")["epoch"]
    for at_us, outcome in ((moment - 1, ("scheduled", None)), (moment, ("approved", epoch + 1))):
        town.set_clock(at_us)
        town.wait(publish_due(town.office))
        found = town.get("carol", f"/changes/{change['id']}")
        assert (found["state"], found["epoch"]) == outcome
    assert town.get("ada", "/epochs/current")["published_at_us"] == moment


def test_what_is_due_together_is_published_one_by_one(town: Any) -> None:
    """Two changes of one moment are two units of work, between which a withdrawal has its turn."""
    moment = now_us() + HOUR_US
    for purpose in ("education", "advertising"):
        items = [edits(town)[0] | {"purpose": purpose}]
        town.approve("bob", town.post("ada", "/changes", title="t", items=items, effective_at_us=moment))
    epoch = town.get("ada", "/epochs/current")["epoch"]
    town.set_clock(moment)
    units = town.office.generation
    town.wait(publish_due(town.office))
    assert town.office.generation - units == 2
    assert town.get("ada", "/epochs/current")["epoch"] == epoch + 2


def test_a_moment_outlives_the_office(town: Any) -> None:
    """A change that became due while no office was open is published by the next one."""
    moment = now_us() + HOUR_US
    change = town.post("ada", "/changes", title="later", items=edits(town), effective_at_us=moment)
    assert town.approve("bob", change)["state"] == "scheduled"
    town.wait(_closed(town))
    town.office = open_office(town.settings.model_dump(mode="json"))
    town.set_clock(moment + HOUR_US)
    town.wait(publish_due(town.office))
    look = town.office.look(lambda desk: desk.register.change(change["id"], previewed=False))
    assert town.wait(look).state == "approved"


async def _closed(town: Any) -> None:
    town.office.close()


def test_acknowledgements_of_a_change_are_visible(town: Any) -> None:
    """Each host is shown with its word for the epoch, or without it and with the state of its lease."""
    change = town.post("ada", "/changes", title="now", items=edits(town))
    path = f"/changes/{change['id']}/acknowledgements"
    assert town.get("ada", path) == {
        "change_id": change["id"],
        "epoch": None,
        "published_at_us": None,
        "servers": [],
    }
    before = town.get("ada", "/epochs/current")
    for server in ("one", "two", "gone"):
        digest = before["snapshot_digest"]
        town.wait(town.office.acknowledge(server, before["epoch"], digest, {}))
    epoch = town.approve("bob", change)["epoch"]
    news = town.wait(town.office.wait_epoch("one", before["epoch"], 0.0))
    town.wait(town.office.acknowledge("one", epoch, news.snapshot_digest, {}))
    town.wait(town.office.wait_epoch("two", before["epoch"], 0.0))
    shown = town.get("ada", path)
    states = {row["server_id"]: (row["acknowledged"], row["epoch"]) for row in shown["servers"]}
    assert states == {"one": (True, epoch), "two": (False, epoch - 1), "gone": (False, epoch - 1)}
    leases = {row["server_id"]: row["lease"] for row in shown["servers"]}
    assert leases["gone"] == "unheard"
    assert {leases["one"], leases["two"]} <= {"live", "lapsed"}
    assert shown["servers"][1]["acknowledged_at_us"] >= shown["published_at_us"]


def test_a_stop_over_http_waits_for_its_second_signature(town: Any) -> None:
    """One call empties the composition; the stop is listed until somebody else who may has signed."""
    made = town.post("ada", "/stops", kind="expert", subject=town.ids["expert"], reason="a leak")
    shown = town.get("dev", "/deployments/notes-research")["composition"]
    assert (shown["members"], shown["epoch"]) == ([], made["epoch"])
    assert [row["id"] for row in town.get("carol", "/stops", overdue=False)["items"]] == [made["id"]]
    assert town.get("carol", "/stops", overdue=True)["items"] == []
    assert town.get("sue", "/stops")["items"] == []
    assert town.ask("ada", "POST", f"/stops/{made['id']}/sign").status_code == 403
    assert town.ask("sue", "POST", f"/stops/{made['id']}/sign").status_code == 404
    assert town.post("bob", f"/stops/{made['id']}/sign")["state"] == "signed"


def test_a_change_is_rolled_back_over_http(town: Any) -> None:
    """A consent that was added is withdrawn at once; the same act a second time finds nothing left."""
    change = town.post("ada", "/changes", title="now", items=edits(town))
    town.approve("bob", change)
    undone = town.post("ada", f"/changes/{change['id']}/rollback")
    assert (undone["change"], len(undone["publications"])) == (None, 1)
    assert town.ask("ada", "POST", f"/changes/{change['id']}/rollback").status_code == 422
    assert town.ask("sue", "POST", f"/changes/{change['id']}/rollback").status_code == 404


def test_reports_follow_in_the_background(town: Any) -> None:
    """The office weighs an open change, then what narrowed at once; each viewer sees their own part."""
    change = town.post("ada", "/changes", title="now", items=edits(town))
    path = f"/changes/{change['id']}/impact"
    assert town.get("ada", path) == {"state": "pending", "digest": None, "report": None}
    epoch = town.post("ada", f"/consents/{town.ids['consent']}/withdraw")["epoch"]
    for _ in range(3):
        town.wait(weigh_next(town.office))
    shown = town.get("carol", path)
    assert (shown["state"], shown["report"]["change_digest"]) == ("current", change["digest"])
    narrowed = town.get("carol", f"/epochs/{epoch}/impact")["report"]
    assert [row["expert_id"] for row in narrowed["experts"]] == [town.ids["expert"]]
    assert narrowed["deployments"][0]["effect"] == "shrinks"
    own = town.get("ada", f"/epochs/{epoch}/impact")
    assert own["report"]["deployments"][0]["lost"] == [town.ids["expert"]]
    assert own["report"]["decisions"] == 0
    stranger = town.get("eve", f"/epochs/{epoch}/impact")["report"]
    assert (stranger["deployments"], stranger["experts"], stranger["consumers"]) == ([], [], [])
    assert town.ask("sue", "GET", path).status_code == 404


def test_measurements_are_recorded_by_who_does_not_own_the_expert(town: Any) -> None:
    """An owner cannot state what its own expert is worth; who measured is seen by the owner and by staff."""
    body = {
        "expert_id": town.ids["expert"],
        "metric": "bits_per_byte",
        "value_micro": 12_000,
        "evidence_digest": "sha256:" + "1" * 64,
    }
    assert town.ask("ada", "POST", "/evaluations", json=body).status_code == 403
    made = town.post("operator", "/evaluations", **body)
    assert [row["id"] for row in town.get("ada", "/evaluations")["items"]] == [made["id"]]
    assert town.get("eve", "/evaluations")["items"] == []
    wrong = town.ask("operator", "POST", "/evaluations", json=body | {"evidence_digest": "nothing"})
    assert wrong.status_code == 422


def test_a_change_that_fits_no_more_keeps_no_other_from_its_report(town: Any) -> None:
    """The newest open change lifts a rule that is gone; the one before it has its report all the same."""
    rule = town.post("carol", "/rules/forbid", text="Not there.", region="us")["subject"]
    healthy = town.post("ada", "/changes", title="one", items=edits(town))
    twin, stale = (
        town.post("carol", "/changes", title="lift", items=[{"kind": "rule.lift", "rule_id": rule}])
        for _ in range(2)
    )
    town.approve("dora", twin)
    refused: dict[str, int] = {}
    with pytest.raises(ProductError):
        town.wait(weigh_next(town.office, refused))
    assert refused.keys() == {stale["id"]}
    town.wait(weigh_next(town.office, refused))
    assert town.get("ada", f"/changes/{healthy['id']}/impact")["state"] == "current"


def test_a_change_that_fits_no_more_can_be_read_and_rejected(town: Any) -> None:
    """Its page and its record are there without a preview, which itself says why; a reviewer closes it."""
    rule = town.post("carol", "/rules/forbid", text="Not there.", region="us")["subject"]
    lifting = [{"kind": "rule.lift", "rule_id": rule}]
    twin, stale = (town.post("carol", "/changes", title="lift", items=lifting) for _ in range(2))
    town.approve("dora", twin)
    shown = town.get("dora", f"/changes/{stale['id']}")
    assert (shown["state"], shown["items"], shown["preview"]) == ("proposed", stale["items"], None)
    assert town.ask("dora", "GET", f"/changes/{stale['id']}/preview").status_code in {404, 409, 422}
    assert town.post("dora", f"/changes/{stale['id']}/reject", comment="It is gone.")["state"] == "rejected"


def test_the_office_goes_on_after_a_refusal(town: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused piece of the office's own work is tried again, and the loop lives on."""
    asked: list[int] = []

    async def act(office: Any) -> float:
        assert office is town.office
        asked.append(len(asked))
        if len(asked) == 1:
            raise OfficeFault("for once")
        if len(asked) == 3:
            raise asyncio.CancelledError
        return 0.0

    monkeypatch.setattr(calendar, "_LOOK_S", 0.0)
    monkeypatch.setattr(calendar, "publish_due", act)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(calendar.keep_calendar(town.office))
    assert asked == [0, 1, 2]

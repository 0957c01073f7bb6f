# SPDX-License-Identifier: Apache-2.0
"""The console: every page for every role, forms that only our own pages can send, nothing inline."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any, cast

import httpx
import pytest

from cluster.gateway.console.charts import curve_chart
from cluster.gateway.console.forms import amount, day, settings
from cluster.gateway.console.reading import VIEWS, home, reads_as
from cluster.gateway.console.render import show_credits
from cluster.gateway.console.visit import Visit
from cluster.office.calendar import weigh_next
from model_core.errors import ProductError

VOID = {"meta", "link", "input", "br", "img", "hr"}


class _Page(HTMLParser):
    """Reads a page for what every page must and must not have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for found, attrs in self.tags if found == tag]


Browser = Callable[[str], httpx.Client]


@pytest.fixture
def browser(town: Any) -> Iterator[Browser]:
    """Makes signed-in browsers, one per person."""
    made: list[httpx.Client] = []

    def sign_in(who: str) -> httpx.Client:
        client = httpx.Client(base_url=town.url, trust_env=False, timeout=20, follow_redirects=True)
        made.append(client)
        answer = client.post("/console/sign-in", data={"key": town.keys[who]})
        assert answer.status_code == 200, answer.text
        return client

    yield sign_in
    for client in made:
        client.close()


def _token(page: str) -> str:
    found = re.search(r'name="form_token" value="([^"]+)"', page)
    assert found is not None
    return found[1]


def _send(client: httpx.Client, page: str, action: str, **fields: str) -> httpx.Response:
    """Sends a form as the page would: with the page's own token."""
    token = _token(client.get(page).text)
    return client.post(action, data={"form_token": token, **fields})


def _check_page(text: str, where: str) -> None:
    page = _Page(text)
    assert not page.unbalanced, (where, page.unbalanced)
    assert not page.open, (where, page.open)
    assert len(page.all("h1")) == 1, where
    assert len(page.all("main")) == 1, where
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("a")[0]["class"] == "skip", where
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids)), (where, ids)
    assert len(page.all("caption")) == len(page.all("table")), where
    assert all(attrs.get("scope") for attrs in page.all("th")), where
    labelled = {attrs["for"] for attrs in page.all("label") if "for" in attrs}
    for tag in ("input", "select", "textarea"):
        for attrs in page.all(tag):
            if attrs.get("type") not in {"hidden", "checkbox"}:
                assert attrs.get("id") in labelled, (where, attrs)
    for tag, attrs in page.tags:
        assert "style" not in attrs, (where, tag)
        assert not any(name.startswith("on") for name in attrs), (where, attrs)
    for attrs in page.all("script"):
        assert attrs["src"] == "/console/static/htmx.min.js"
        assert str(attrs["integrity"]).startswith("sha384-")
    for attrs in page.all("form"):
        assert attrs["method"] == "post", where
    for attrs in page.all("a"):
        assert str(attrs["href"]).startswith(("/console/", "#")), (where, attrs)


def _addresses(town: Any) -> list[str]:
    decision = town.get("carol", "/decisions")["items"]
    erased = {"subject_kind": "expert", "subject_id": town.ids["expert"], "reason": "none"}
    values = {
        "expert_id": town.ids["expert"],
        "job_id": town.post("ada", "/jobs", name="j", dataset_id=town.ids["dataset"])["id"],
        "change_id": town.get("carol", "/changes")["items"][0]["id"],
        "name": "notes-research",
        "epoch": "2",
        "decision_id": decision[0]["id"] if decision else "none",
        "erasure_id": town.post("ada", "/erasures", **erased)["id"],
    }
    paths = [view.path for view in VIEWS]
    return [re.sub(r"{(\w+)}", lambda slot: values[slot[1]], path) for path in paths]


@pytest.mark.parametrize("who", ["operator", "carol", "ada", "dev", "aud"])
def test_every_page_stands_for_every_role(town: Any, browser: Browser, who: str) -> None:
    """Each page is well formed and accessible for who may see it, and a plain refusal for who may not."""
    client = browser(who)
    for address in _addresses(town):
        answer = client.get(address)
        assert answer.status_code in {200, 403, 404}, (address, answer.text)
        if not address.endswith("/live"):
            _check_page(answer.text, address)


def test_strangers_see_the_sign_in_page_alone(town: Any) -> None:
    """Without a session every console address is the sign-in page with status 401."""
    for address in ("/", "/console/", "/console/experts", "/console/changes/x", "/console/nothing"):
        answer = town.http.get(address)
        assert answer.status_code == 401
        assert "Your key" in answer.text
        _check_page(answer.text, address)


def test_wrong_keys_do_not_sign_in(town: Any) -> None:
    """An unknown key and a text that is none are told so, on the sign-in page, without a cookie."""
    for key in ("mk_unknown-key", "<script>", ""):
        answer = town.http.post("/console/sign-in", data={"key": key})
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        assert "<script>" not in answer.text


def test_cookie_is_careful_and_sign_out_ends_it(town: Any, browser: Browser) -> None:
    """The cookie is HttpOnly, SameSite=Strict and no key; after signing out it opens nothing."""
    raw = town.http.post("/console/sign-in", data={"key": town.keys["ada"]})
    cookie = raw.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert town.keys["ada"] not in cookie
    client = browser("ada")
    old = dict(client.cookies)
    _send(client, "/console/", "/console/sign-out")
    with httpx.Client(base_url=town.url, cookies=old, trust_env=False) as replayed:
        assert replayed.get("/console/").status_code == 401


def test_forms_of_other_sites_are_refused(town: Any, browser: Browser) -> None:
    """Without the session's own token, or sent from another site, no form does anything."""
    client = browser("ada")
    before = town.state()
    action = f"/console/consents/{town.ids['consent']}/withdraw"
    token = _token(client.get("/console/consents").text)
    assert client.post(action).status_code == 403
    assert client.post(action, data={"form_token": "x" * 43}).status_code == 403
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert client.post(action, data={"form_token": token}, headers=headers).status_code == 403
    other = _token(browser("bob").get("/console/consents").text)
    assert client.post(action, data={"form_token": other}).status_code == 403
    assert town.state() == before


def test_consent_is_given_by_two_and_withdrawn_by_one(town: Any, browser: Browser) -> None:
    """The owner's journey without JavaScript: draft, a colleague approves, one button withdraws."""
    ada, bob = browser("ada"), browser("bob")
    drafted = _send(
        ada, "/console/consents", "/console/consents", expert_id=town.ids["expert"], purpose="education"
    )
    assert "Drafted" in drafted.text
    address = str(drafted.url.path)
    assert "Approve and publish" not in drafted.text
    page = bob.get(address).text
    digest = re.search(r'name="digest" value="([^"]+)"', page)
    assert digest is not None
    approved = _send(bob, address, f"{address}/approve", digest=digest[1])
    assert "Approved and published." in approved.text
    shown = ada.get("/console/consents").text
    assert shown.count(">Withdraw<") == 2
    done = _send(ada, "/console/consents", f"/console/consents/{town.ids['consent']}/withdraw")
    assert "Withdrawn." in done.text
    assert done.text.count(">Withdraw<") == 1


def test_deployment_page_gives_every_reason(town: Any, browser: Browser) -> None:
    """The page names included and excluded experts with the sentence of each reason."""
    page = browser("dev").get("/console/deployments/notes-research").text
    assert "The owner north consents to this use." in page
    town.post("ada", f"/consents/{town.ids['consent']}/withdraw")
    page = browser("dev").get("/console/deployments/notes-research").text
    assert "the public base alone" in page
    assert "withdrew the consent" in page


def test_documents_are_uploaded_and_trained_on(town: Any, browser: Browser) -> None:
    """The owner uploads a file and submits a job with the console's forms."""
    ada = browser("ada")
    token = _token(ada.get("/console/jobs").text)
    file = {"file": ("x.jsonl", b'{"id":"a","text":"hello"}\n', "application/octet-stream")}
    fields = {"form_token": token, "name": "mine", "license": "CC0-1.0", "languages": "en, de"}
    answer = ada.post("/console/datasets", data=fields, files=file)
    assert "Received and registered." in answer.text
    (mine,) = [row for row in town.get("ada", "/datasets")["items"] if row["name"] == "mine"]
    assert mine["card"]["languages"] == ["en", "de"]
    refused = ada.post("/console/datasets", data=fields | {"form_token": "no"}, files=file)
    assert refused.status_code == 403
    job = _send(
        ada, "/console/jobs", "/console/jobs", name="n", dataset_id=mine["id"], recipe="steps = 5\nx=a b"
    )
    assert "Submitted." in job.text
    assert town.get("ada", "/jobs")["items"][0]["recipe"] == {"steps": 5, "x": "a b"}
    assert town.staged() == []


def test_curves_are_drawn_and_refresh(town: Any, browser: Browser) -> None:
    """A running job's page draws its curves, refreshes itself, and stops doing so at the end."""
    job = town.post("ada", "/jobs", name="j", dataset_id=town.ids["dataset"])
    client = browser("ada")
    page = client.get(f"/console/jobs/{job['id']}").text
    assert 'hx-trigger="every 2s"' in page
    assert '<noscript><meta http-equiv="refresh"' in page
    assert "No curves yet." in page
    town.post("ada", f"/jobs/{job['id']}/cancel")
    page = client.get(f"/console/jobs/{job['id']}").text
    assert "hx-trigger" not in page
    assert "htmx.min.js" not in page


def test_names_are_escaped(town: Any, browser: Browser) -> None:
    """Text that people chose is shown as text."""
    canary = "<img src=x onerror=alert(1)>"
    town.upload(
        "ada", "/datasets", b'{"id":"a","text":"b"}', "application/x-ndjson",
        name="odd", license="MIT", description=canary,
    )  # fmt: skip
    town.post("carol", "/rules/forbid", text=canary, purpose="advertising")
    client = browser("carol")
    for address in ("/console/rules", "/console/jobs", "/console/?note=" + canary, "/console/audit"):
        page = client.get(address).text
        assert "<img" not in page


def test_revoked_key_ends_its_sessions(town: Any, browser: Browser) -> None:
    """A revoked key's console session shows the sign-in page at its next page."""
    client = browser("bob")
    town.post("operator", f"/keys/{town.ids['key-bob']}/revoke")
    answer = client.get("/console/")
    assert answer.status_code == 401
    assert "revoked" in answer.text


def test_charts_hold_for_odd_curves() -> None:
    """Flat, tiny, huge and non-finite curves are drawn inside the picture or left out."""
    flat = [{"name": "a", "step": n, "value": 1.0} for n in range(3)]
    wild = [{"name": "b", "step": n, "value": v} for n, v in enumerate([1e-9, 3e12, float("nan"), -5.0])]
    lone = [{"name": "c", "step": 1, "value": 2.0}]
    charts = curve_chart(flat + wild + lone)
    assert [chart.name for chart in charts] == ["a", "b"]
    for chart in charts:
        for pair in chart.line.split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 640
            assert 0 <= y <= 260


def test_amounts_days_and_recipes_are_read_exactly() -> None:
    """What people type is read exactly or refused."""
    assert amount("12.50") == 12_500_000
    assert amount("0.000001") == 1
    assert show_credits(amount("1,234.5")) == "1,234.50"
    assert day("1970-01-02") == 86_400_000_000
    assert settings("a = 1\n\nb=true\nc = x y") == {"a": 1, "b": True, "c": "x y"}
    for reader, text in (
        (amount, "0.0000001"),
        (amount, "NaN"),
        (amount, "ten"),
        (day, "soon"),
        (settings, "x"),
    ):
        with pytest.raises(ProductError):
            reader(text)


def test_edits_read_as_sentences() -> None:
    """An edit is shown as a sentence with names instead of ids."""
    item = {
        "kind": "consent.give",
        "expert_id": "exp_1",
        "action": "infer",
        "purpose": "research",
        "region": "*",
        "recipient": "*",
        "commercial": False,
    }
    sentence = reads_as(item, {"exp_1": "north/notes v1"})
    assert sentence == (
        "This consents to infer of north/notes v1 for research in all regions, by everyone, "
        "not for commercial use."
    )


def test_a_draft_is_written_scheduled_and_seen_through(town: Any, browser: Browser) -> None:
    """Without JavaScript: edit, lay before a reviewer, approve for a moment, and read what it will do."""
    ada, bob = browser("ada"), browser("bob")
    edits = [{"kind": "consent.give", "expert_id": town.ids["expert"], "purpose": "education"}]
    draft = town.post("ada", "/changes", title="one", items=edits, draft=True)
    address = f"/console/changes/{draft['id']}"
    fields = {"version": "1", "title": "two", "items": json.dumps(edits)}
    saved = _send(ada, address, f"{address}/edit", **fields, effective_at="2099-01-01T00:00")
    assert saved.status_code == 422
    soon = datetime.now(UTC) + timedelta(days=30)
    saved = _send(ada, address, f"{address}/edit", **fields, effective_at=f"{soon:%Y-%m-%dT%H:%M}")
    assert "Saved as the next version." in saved.text
    assert "Approve" not in saved.text
    _send(ada, address, f"{address}/submit", version="2")
    page = bob.get(address).text
    digest = re.search(r'name="digest" value="([^"]+)"', page)
    assert digest is not None
    approved = _send(bob, address, f"{address}/approve", digest=digest[1])
    assert "The office publishes it at its moment." in approved.text
    assert "The office is still counting" in approved.text
    town.wait(weigh_next(town.office))
    shown = bob.get(address).text
    assert "logged decisions, compared with epoch" in shown
    _check_page(shown, address)
    revised = _send(ada, address, f"{address}/revise")
    assert "opened again as a draft" in revised.text
    assert "revised" in bob.get(address).text
    given_up = _send(ada, revised.url.path, f"{revised.url.path}/withdraw")
    assert "Withdrawn. Nothing was published." in given_up.text


def test_a_stop_is_one_form_and_waits_for_a_signature(town: Any, browser: Browser) -> None:
    """The stop shows as awaiting somebody else; that one signs, and sees what its epoch did."""
    carol, dora = browser("carol"), browser("dora")
    stopped = _send(
        carol, "/console/stops", "/console/stops", kind="expert", subject=town.ids["expert"], reason="a leak"
    )
    assert "Stopped, at once." in stopped.text
    assert ">Sign<" not in stopped.text
    (row,) = town.get("carol", "/stops")["items"]
    assert "Second signature under the stop of expert" in dora.get("/console/").text
    page = dora.get("/console/stops").text
    assert f"/console/stops/{row['id']}/sign" in page
    _check_page(page, "/console/stops")
    assert "✓ signed" in _send(dora, "/console/stops", f"/console/stops/{row['id']}/sign").text
    town.wait(weigh_next(town.office))
    town.wait(weigh_next(town.office))
    shown = dora.get(f"/console/epochs/{row['epoch']}").text
    assert "Deployments that change." in shown
    _check_page(shown, "epoch")


def test_an_overdue_stop_is_on_the_first_page_however_many_followed() -> None:
    """The oldest stop, which nobody signed, is named before the newest ones, which need nothing."""
    stops = [{"id": f"stp_{n}", "state": "signed"} for n in range(300, 0, -1)]
    stops += [{"id": "stp_0", "state": "overdue"}]

    class Answers:
        async def call(self, operation: str, **fields: Any) -> dict[str, Any]:
            if operation != "stops.list":
                return {"items": []}
            wanted = fields.get("overdue")
            rows = [row for row in stops if wanted in {None, row["state"] == "overdue"}]
            return {"items": rows[: fields["limit"]]}

    shown = asyncio.run(home(cast("Visit", Answers())))
    assert [row["id"] for row in shown["unsigned"]] == ["stp_0"]


def test_a_published_change_is_rolled_back_with_one_button(town: Any, browser: Browser) -> None:
    """The page of a published change shows who runs it and undoes it."""
    edits = [{"kind": "consent.give", "expert_id": town.ids["expert"], "purpose": "education"}]
    change = town.post("ada", "/changes", title="one", items=edits)
    town.approve("bob", change)
    address = f"/console/changes/{change['id']}"
    page = browser("ada").get(address).text
    assert "Who runs it" in page
    _check_page(page, address)
    done = _send(browser("ada"), address, f"{address}/rollback")
    assert "Undone where that narrows" in done.text

# SPDX-License-Identifier: Apache-2.0
"""Editing by version over HTTP: tags come with what can be edited, and edits of old ones are refused."""

from __future__ import annotations

from typing import Any

USE = {"purpose": "research", "region": "eu", "commercial": False}


def test_an_endpoint_is_edited_by_the_version_that_was_read(town: Any) -> None:
    """The tag of the shown form lets an edit in; after another form was published the same tag refuses it."""
    shown = town.ask("dev", "GET", "/deployments/notes-research")
    tag = {"If-Match": shown.headers["etag"]}
    assert shown.headers["etag"] == f'"{shown.json()["version"]}"'
    first = town.ask("dev", "PUT", "/deployments/notes-research", json=USE | {"top_k": 3}, headers=tag)
    assert first.status_code == 200
    town.approve("carol", first.json())
    late = town.ask("dev", "PUT", "/deployments/notes-research", json=USE | {"top_k": 4}, headers=tag)
    assert (late.status_code, late.json()["code"]) == (412, "precondition_failed")
    ended = town.ask("dev", "DELETE", "/deployments/notes-research", headers=tag)
    assert ended.status_code == 412
    named = town.ask("dev", "PUT", "/deployments/notes-research", json=USE | {"expected_version": 1})
    assert (named.status_code, named.json()["code"]) == (409, "stale_version")
    fresh = {"If-Match": town.ask("dev", "GET", "/deployments/notes-research").headers["etag"]}
    assert town.ask("dev", "DELETE", "/deployments/notes-research", headers=fresh).status_code == 200


def test_a_draft_is_edited_by_the_version_that_was_read(town: Any) -> None:
    """Two authors of one draft cannot write over each other's edits."""
    items = [{"kind": "consent.give", "expert_id": town.ids["expert"], "purpose": "education"}]
    draft = town.post("ada", "/changes", title="One", items=items, draft=True)
    tag = {"If-Match": town.ask("ada", "GET", f"/changes/{draft['id']}").headers["etag"]}
    edit = {"title": "Two", "items": items}
    assert town.ask("ada", "PUT", f"/changes/{draft['id']}", json=edit, headers=tag).status_code == 200
    late = town.ask("ada", "PUT", f"/changes/{draft['id']}", json=edit, headers=tag)
    assert (late.status_code, late.json()["code"]) == (412, "precondition_failed")


def test_a_condition_is_never_ignored(town: Any) -> None:
    """A tag of another form, several tags, and one where nothing has versions are refused; a star is any."""
    before = town.state()
    for path, method, sent in (
        ("/deployments/notes-research", "PUT", '"x"'),
        ("/deployments/notes-research", "PUT", '"1", "2"'),
        ("/deployments/notes-research", "PUT", "1"),
        (f"/consents/{town.ids['consent']}/withdraw", "POST", '"1"'),
    ):
        who = "dev" if method == "PUT" else "ada"
        answer = town.ask(who, method, path, json=USE if method == "PUT" else {}, headers={"If-Match": sent})
        assert (answer.status_code, answer.json()["code"]) == (412, "precondition_failed"), (path, sent)
    assert town.state() == before
    star = town.ask("dev", "PUT", "/deployments/notes-research", json=USE, headers={"If-Match": "*"})
    assert star.status_code == 200

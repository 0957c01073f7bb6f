# SPDX-License-Identifier: Apache-2.0
"""The console's pages of consents and erasure: receipts to download, requests, holds, letters."""

from __future__ import annotations

import json
from typing import Any

from policy.consents.receipts import check_receipt
from tests.cluster.test_console import Browser, _check_page, _send, browser

__all__ = ["browser"]


def test_a_receipt_is_downloaded_where_consents_are_shown(town: Any, browser: Browser) -> None:
    """The page links to a file that verifies; after withdrawing it says so."""
    ada = browser("ada")
    address = f"/console/consents/{town.ids['consent']}/receipt"
    page = ada.get("/console/consents").text
    assert address in page
    _check_page(page, "/console/consents")
    key = town.get("ada", "/receipts/key")["public_key"]
    answer = ada.get(address)
    assert answer.headers["content-disposition"].startswith("attachment")
    assert check_receipt(answer.content, {key}).trusted
    _send(ada, "/console/consents", f"/console/consents/{town.ids['consent']}/withdraw")
    assert json.loads(ada.get(address).content)["document"]["status"] == "withdrawn"
    assert browser("sue").get(address).status_code == 404


def test_an_erasure_from_asking_to_the_record(town: Any, browser: Browser) -> None:
    """Ada asks and cannot approve; Bob approves; the consumer takes note; the record is downloaded."""
    ada, bob, dev = browser("ada"), browser("bob"), browser("dev")
    asked = _send(
        ada,
        "/console/erasures",
        "/console/erasures",
        subject_kind="expert",
        subject_id=town.ids["expert"],
        reason="withdrawn",
    )
    assert "Nothing is removed before somebody else approves." in asked.text
    assert "Approve the erasure" not in asked.text
    _check_page(asked.text, "erasure")
    (row,) = town.get("ada", "/erasures")["items"]
    address = f"/console/erasures/{row['id']}"
    assert "Approve the erasure" in bob.get(address).text
    assert "It serves nowhere any more" in _send(bob, address, f"{address}/approve").text
    town.post("operator", f"/erasures/{row['id']}/execute")
    assert ada.get(f"{address}/record").status_code == 200
    page = dev.get("/console/erasures").text
    _check_page(page, "/console/erasures")
    (letter,) = town.get("dev", "/notifications")["items"]
    noted = _send(dev, "/console/erasures", f"/console/notifications/{letter['id']}/acknowledge")
    assert "✓ noted" in noted.text


def test_holds_are_set_and_lifted_in_the_console(town: Any, browser: Browser) -> None:
    """Compliance holds and lifts; the owner sees it without a form."""
    carol, ada = browser("carol"), browser("ada")
    held = _send(
        carol,
        "/console/erasures",
        "/console/holds",
        subject_kind="expert",
        subject_id=town.ids["expert"],
        reason="case 1",
    )
    assert "✕ held" in held.text
    _check_page(held.text, "/console/erasures")
    seen = ada.get("/console/erasures").text
    assert "case 1" in seen
    assert "/lift" not in seen
    (row,) = town.get("carol", "/holds")["items"]
    lifted = _send(carol, "/console/erasures", f"/console/holds/{row['id']}/lift", reason="closed")
    assert ">lifted<" in lifted.text

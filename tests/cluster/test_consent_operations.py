# SPDX-License-Identifier: Apache-2.0
"""Consents over the doors that people use: notices, renewals, receipts, and nothing personal left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster.cli.main import root
from model_core.packing.keys import generate_key
from policy.consents.receipts import check_receipt, sign_receipt
from policy.errors import ReceiptInvalid

NAME = "Anneliese Beispiel-Kanarienvogel"
SIGNED = "signed sheet of paper, folder 7, by A. Beispiel"


def _given(town: Any, **fields: Any) -> dict[str, Any]:
    """A consent of ada that bob approved; answers the newest."""
    drafted = town.post("ada", "/consents", expert_id=town.ids["expert"], purpose="education", **fields)
    town.approve("bob", drafted)
    newest: dict[str, Any] = town.get("ada", "/consents")["items"][-1]
    return newest


def test_what_was_shown_and_who_signed_can_be_shown(town: Any) -> None:
    """A record answers the notice's words to its owner, who was meant, and each event with its epoch."""
    notice = town.post("ada", "/notices", language="en", version="1", text="We ask you to let a model learn.")
    word = _given(
        town,
        notice_digest=notice["id"],
        subject=NAME,
        evidence=SIGNED,
        subject_kind="data_subjects",
        channel="paper",
        jurisdiction="eu",
    )
    mine = town.get("ada", f"/consents/{word['id']}/record")
    assert (mine["subject"], mine["evidence"], mine["notice"]["text"]) == (NAME, SIGNED, notice["text"])
    assert [event["event"] for event in mine["events"]] == ["given"]
    staff = town.get("carol", f"/consents/{word['id']}/record")
    assert (staff["subject"], staff["evidence"]) == (None, None)
    assert staff["paper"]["subject_ref"].startswith("salted-sha256:")
    assert town.ask("sue", "GET", f"/consents/{word['id']}/record").status_code == 404


def test_no_name_is_kept_outside_the_vault(town: Any) -> None:
    """After giving, renewing, refusing and withdrawing, a name stands in the vault's table alone."""
    word = _given(town, subject=NAME, evidence=SIGNED, valid_until_us=2_000_000_000_000_000)
    town.post("ada", f"/consents/{word['id']}/renew", evidence=SIGNED)
    asked = town.post("ada", "/consents/requests", expert_id="*", purpose="research", subject=NAME)
    town.post("ada", f"/consents/requests/{asked['record_id']}/refuse", evidence=SIGNED)
    town.post("ada", f"/consents/{word['id']}/withdraw")

    def found(desk: Any) -> set[str]:
        from sqlalchemy import inspect, text

        tables = inspect(desk.session.get_bind()).get_table_names()
        whole = {
            table: repr(desk.session.execute(text(f'SELECT * FROM "{table}"')).all()) for table in tables
        }
        return {table for table, rows in whole.items() if NAME in rows or SIGNED in rows}

    assert town.wait(town.office.do(found, wakes=False)) == {"personal_vault"}
    for log in town.home.logs.iterdir():
        assert NAME.encode() not in log.read_bytes()


def test_withdrawing_takes_no_more_acts_than_giving(town: Any) -> None:
    """Counted over the API: giving takes a draft and an approval, withdrawing one act of one person."""
    before = town.get("aud", "/audit/records", limit=1000)["items"][-1]["seq"]
    word = _given(town)
    given = [row["action"] for row in town.get("aud", "/audit/records", after=before)["items"]]
    before += len(given)
    town.post("ada", f"/consents/{word['id']}/withdraw")
    withdrawn = [row["action"] for row in town.get("aud", "/audit/records", after=before)["items"]]
    acts = [[action for action in actions if "." in action and not action.startswith("epoch.")]
            for actions in (given, withdrawn)]  # fmt: skip
    assert [len(one) for one in acts] == [2, 1]
    assert town.ask("sue", "POST", f"/consents/{word['id']}/withdraw", json={}).status_code == 404


def test_a_receipt_says_when_each_server_stopped(town: Any) -> None:
    """After a withdrawal the receipt names its epoch and every server: by its word, or by its lease."""
    for server in ("host-a", "host-b"):
        epoch = town.get("dev", "/epochs/current")["epoch"]
        snapshot = town.wait(town.office.wait_epoch(server, 0)).snapshot_digest
        town.wait(town.office.acknowledge(server, epoch, snapshot, {}))
    published = town.post("ada", f"/consents/{town.ids['consent']}/withdraw")
    town.wait(town.office.acknowledge("host-a", published["epoch"], published["snapshot_digest"], {}))
    receipt = town.get("ada", f"/consents/{town.ids['consent']}/receipt")["document"]
    assert (receipt["status"], receipt["valid"]) == ("withdrawn", False)
    assert receipt["events"][-1]["epoch"] == published["epoch"]
    how = {one["server_id"]: one["how"] for one in receipt["stopped"]["servers"]}
    assert how["host-a"] == "acknowledged"
    assert how["host-b"] in {"pending", "lease_ran_out"}
    assert (receipt["stopped"]["everywhere_by_us"] is None) == (how["host-b"] == "pending")


def test_receipts_are_checked_offline_and_tampering_is_found(town: Any, tmp_path: Path) -> None:
    """The downloaded file verifies with the platform's key alone; any change, or another key, is refused."""
    word = _given(town, notice_digest=None)
    signed = town.get("ada", f"/consents/{word['id']}/receipt", event=1)
    key = town.get("dev", "/receipts/key")["public_key"]
    document = signed["document"]
    assert {"header", "processing", "parties", "events", "receipt_id", "schema_version"} <= document.keys()
    assert document["processing"]["uses"][0]["purpose"] == "education"
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(signed, indent=3))
    shown = CliRunner().invoke(root, ["consent", "verify-receipt", str(file), "--public-key", key])
    assert shown.exit_code == 0, shown.output
    assert check_receipt(file.read_bytes(), {key}).trusted
    assert not check_receipt(file.read_bytes()).trusted
    for change in ({"valid": False}, {"status": "given "}, {"receipt_id": "rcp_1"}):
        forged = {**signed, "document": {**document, **change}}
        with pytest.raises(ReceiptInvalid):
            check_receipt(json.dumps(forged).encode(), {key})
    own = sign_receipt({**document, "valid": True}, generate_key()).model_dump_json().encode()
    with pytest.raises(ReceiptInvalid):
        check_receipt(own, {key})
    for broken in (b"", b"{}", b"[]", json.dumps({**signed, "document": {}}).encode(), b"\xff"):
        with pytest.raises(ReceiptInvalid):
            check_receipt(broken)


def test_every_event_has_its_receipt(town: Any) -> None:
    """A renewed and withdrawn consent has three receipts, each of what stood then, and no fourth."""
    word = _given(town, valid_until_us=2_000_000_000_000_000)
    drafted = town.post("ada", f"/consents/{word['id']}/renew", valid_until_us=2_100_000_000_000_000)
    town.approve("bob", drafted)
    town.post("ada", f"/consents/{word['id']}/withdraw")
    receipts = [town.get("ada", f"/consents/{word['id']}/receipt", event=n)["document"] for n in (1, 2, 3)]
    assert [one["status"] for one in receipts] == ["given", "renewed", "withdrawn"]
    assert [one["valid"] for one in receipts] == [True, True, False]
    assert len({one["receipt_id"] for one in receipts}) == 3
    answer = town.ask("ada", "GET", f"/consents/{word['id']}/receipt", params={"event": 4})
    assert answer.status_code == 404


def test_reminders_are_shown_in_time(town: Any) -> None:
    """What ends within the days asked for is listed for its owner, and for nobody else."""
    import time

    soon = time.time_ns() // 1000 + 5 * 86_400_000_000
    word = _given(town, valid_until_us=soon)
    assert [row["id"] for row in town.get("ada", "/consents/expiring", within_days=7)["items"]] == [
        word["id"]
    ]
    assert town.get("ada", "/consents/expiring", within_days=3)["items"] == []
    assert town.get("sue", "/consents/expiring", within_days=7)["items"] == []


def test_the_office_writes_down_what_ran_out(town: Any) -> None:
    """After its end a consent's record and the audit say expired, once, though nobody waited for it."""
    from cluster.office.upkeep import note_expired

    word = _given(town, valid_until_us=2_000_000_000_000_000)

    def later(desk: Any) -> list[str]:
        desk.now_us = 2_000_000_000_000_000
        return note_expired(desk)

    assert town.wait(town.office.do(later, wakes=False)) == [word["id"]]
    assert town.wait(town.office.do(later, wakes=False)) == []
    record = town.get("ada", f"/consents/{word['id']}/record")
    assert (record["status"], record["events"][-1]["principal_id"]) == ("expired", None)
    assert town.get("aud", "/audit/records", limit=1000)["items"][-1]["action"] == "consents.expire"


def test_a_question_permits_nothing(town: Any) -> None:
    """Asked and not answered, a use stays forbidden; answered, the record holds question and answer."""
    asked = town.post("ada", "/consents/requests", expert_id=town.ids["expert"], purpose="education")
    assert [row["record_id"] for row in town.get("ada", "/consents/requests")["items"]] == [
        asked["record_id"]
    ]
    assert len(town.get("ada", "/consents")["items"]) == 1
    word = _given(town, record_id=asked["record_id"])
    record = town.get("ada", f"/consents/{word['id']}/record")
    assert [event["event"] for event in record["events"]] == ["requested", "given"]
    assert record["paper"]["asked"]["purpose"] == "education"
    assert town.get("ada", "/consents/requests")["items"] == []
    body = {"expert_id": town.ids["expert"], "purpose": "education"}
    assert town.ask("sue", "POST", "/consents/requests", json=body).status_code == 404

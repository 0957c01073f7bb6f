# SPDX-License-Identifier: Apache-2.0
"""The office exports checkpoints, and an exported audit is verified from the command line alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster.cli.main import root
from cluster.office.checkpoints import export_checkpoint
from cluster.office.protocol import MetricReading, UsageRecord
from model_core.packing.keys import generate_key
from policy.audit.bundle import verify_bundle, write_bundle
from policy.audit.chain import Audit
from policy.audit.notes import read_notes
from policy.audit.proofs import Consistency, RowProof
from policy.evidence.pack import verify_pack
from tenants.accounts.accounts import Accounts
from tenants.accounts.database import Database

KEY = generate_key()
DAY_US = 86_400_000_000
START = 1_800_000_000_000_000


def grow(database: Database, number: int) -> None:
    """One act more."""
    with database.unit_of_work() as session:
        Accounts(session, START).create_tenant(f"tenant-{number}", "A tenant")
        Audit(session, START + number).append("platform", "tenants.make", f"tenants/{number}", {})


def test_checkpoints_are_appended_by_day(database: Database, tmp_path: Path) -> None:
    """Each day has one file of notes, oldest first; the latest stands by itself."""
    for number in range(4):
        grow(database, number)
        with database.reading() as session:
            point = Audit(session, START + number // 2 * DAY_US).checkpoint(KEY)
        export_checkpoint(tmp_path / "checkpoints", point)
    days = sorted((tmp_path / "checkpoints").glob("2*.txt"))
    notes = [read_notes(day.read_text(), {KEY.public_key}) for day in days]
    assert [[note.seals for note in day] for day in notes] == [[1, 2], [3, 4]]
    (latest,) = read_notes((tmp_path / "checkpoints" / "latest.txt").read_text(), {KEY.public_key})
    assert latest == notes[-1][-1]


def test_a_full_disk_leaves_no_half_of_a_checkpoint(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note that did not fit is taken back whole, so the day's other notes can still be read."""
    grow(database, 0)
    with database.reading() as session:
        point = Audit(session, START).checkpoint(KEY)
    day = export_checkpoint(tmp_path, point)
    really_write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda handle, data: really_write(handle, data[:40]))
        with pytest.raises(OSError, match="short write"):
            export_checkpoint(tmp_path, point)
    export_checkpoint(tmp_path, point)
    assert len(read_notes(day.read_text(), {KEY.public_key})) == 2


def test_the_command_line_verifies_offline(database: Database, tmp_path: Path) -> None:
    """``audit verify BUNDLE`` ends with 0 where all holds, else with 1 and says what is wrong."""
    grow(database, 0)
    with database.reading() as session:
        early = export_checkpoint(tmp_path / "kept", Audit(session, START).checkpoint(KEY))
    grow(database, 1)
    bundle = tmp_path / "bundle"
    with database.reading() as session:
        point = Audit(session, START).checkpoint(KEY)
        write_bundle(session, bundle, point.note, point.public_key)

    def verify(*options: str) -> tuple[int, dict[str, object]]:
        said = CliRunner().invoke(root, ["--json", "audit", "verify", str(bundle), *options])
        assert said.exit_code in {0, 1}, said.output
        return said.exit_code, json.loads(said.output)

    code, report = verify()
    assert (code, report["ok"], report["tail"]) == (0, True, "not proven")
    code, report = verify("--checkpoint", str(early), "--public-key", KEY.public_key)
    assert (code, report["ok"], report["tail"]) == (0, True, "proven")
    tenants = bundle / "tables" / "tenants.jsonl"
    tenants.write_text(tenants.read_text().replace("A tenant", "Another", 1))
    code, report = verify()
    assert (code, report["bad"]) == (1, ["tenants tenant-0"])
    assert "changed after it was sealed" in str(report["sentence"])


@pytest.mark.parametrize(
    "words", [["audit", "verify", "{}"], ["evidence", "verify", "{}"], ["evidence", "diff", "{}", "{}"]]
)
def test_folders_without_evidence_are_refused_in_words(words: list[str], tmp_path: Path) -> None:
    """A folder that holds something else is no crash."""
    said = CliRunner().invoke(root, [word.replace("{}", str(tmp_path)) for word in words])
    assert said.exit_code != 0
    assert getattr(said.exception, "code", "") == "broken_proof"


def test_a_busy_office_is_proven_by_its_own_records(found_town: Any, tmp_path: Path) -> None:
    """Jobs, curves, repeated calls, usage, keys and a withdrawal: sealed, explained and in evidence."""
    town = found_town()
    body = {"name": "notes", "dataset_id": town.ids["dataset"], "recipe": {"steps": 2}}
    for _ in range(2):
        town.ask("ada", "POST", "/jobs", json=body, headers={"Idempotency-Key": "once"})
    claim = town.wait(town.office.claim_job("frm_1"))
    points = [MetricReading(step=1, name="loss", value=2.5)]
    for state in ("running", "running", "sealing"):
        town.wait(town.office.job_progress(claim.job_id, claim.fence, state, points))
    town.wait(town.office.fail_job(claim.job_id, claim.fence, "broken", "It broke.", retry=True))
    held = town.wait(town.office.admit_request(town.keys["dev"], "notes-research", 20))
    used = UsageRecord(
        request_id=held.request_id,
        deployment=held.deployment,
        epoch=held.epoch,
        composition_digest=held.composition_digest,
        prompt_tokens=3,
        completion_tokens=5,
        experts={"public": 5_000_000},
        at_us=START,
        final=True,
    )
    town.wait(town.office.record_usage("host-1", 1, [used]))
    made = town.post("operator", "/keys", tenant="south", principal="sam", roles=["developer"])
    town.post("operator", f"/keys/{made['id']}/revoke")
    pack = town.get("aud", "/deployments/notes-research/evidence")
    point = town.post("aud", "/audit/checkpoint")
    town.post("ada", f"/consents/{town.ids['consent']}/withdraw")
    report = town.post("aud", "/audit/verify", checkpoints=[point])
    assert (report["ok"], report["sentence"], report["tail"]) == (True, "Every record holds.", "proven")
    assert report["rows"] > 100
    assert town.post("dev", "/audit/verify")["rows"] == 0
    proof = RowProof.model_validate(town.get("aud", f"/audit/proof/api_keys/{made['id']}"))
    grown = town.get("aud", f"/audit/consistency/{point['seals']}")
    assert proof.holds()
    assert Consistency.model_validate(grown).holds()
    assert (grown["earlier_root"], grown["root"]) == (point["seals_root"], proof.root)
    exported = town.post("aud", "/audit/export")
    assert verify_bundle(Path(exported["folder"]), [point["note"]], {exported["public_key"]}).ok
    (folder := tmp_path / "evidence").mkdir()
    for name, text in pack["files"].items():
        (folder / name).write_text(text)
    assert verify_pack(folder, {point["public_key"]}).ok
    for who in ("dev", "ada"):
        for path in ("/deployments/notes-research/evidence", "/audit/proof/audit/1", "/audit/consistency/1"):
            assert town.ask(who, "GET", path).status_code == 403

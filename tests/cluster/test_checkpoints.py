# SPDX-License-Identifier: Apache-2.0
"""The office exports checkpoints, and an exported audit is verified from the command line alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.cli.main import root
from cluster.office.checkpoints import export_checkpoint
from model_core.packing.keys import generate_key
from policy.audit import Audit
from policy.auditing.bundle import write_bundle
from policy.auditing.notes import read_notes
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

# SPDX-License-Identifier: Apache-2.0
"""The evidence pack of one deployment: complete, valid by the published schema, and refused once changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from jsonschema import Draft7Validator
from town import Town, consent

from model_core.packing.canonical import canonical_bytes, digest_bytes
from model_core.packing.keys import SigningKey, generate_key
from policy.audit.sealing import seal_database
from policy.errors import BrokenProof, NotFound
from policy.evidence.bom import bill_of_materials
from policy.evidence.facts import gather
from policy.evidence.pack import compare_packs, make_pack, verify_pack
from policy.records.items import ConsentRenew, ForbidUse
from tenants.accounts.database import Database
from tenants.accounts.scope import PLATFORM

# jsonschema's own check of it comes with grammars that every process of Ray would then load, which takes each
# 1.4 s of processor time. The bill's addresses are ASCII.
REFERENCE = re.compile(r"(?:[!#$&-;=?-Z\[\]_a-z~]|%[0-9A-Fa-f]{2})*")

KEY = generate_key()
DAY = 86_400_000_000


def town_of(database: Database) -> Town:
    """Two owners' experts behind one endpoint."""
    town = Town(database)
    town.open_all(town.expert(), town.expert("beta", "numbers"))
    return town


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Town]:
    """A town that tests only read."""
    path = tmp_path_factory.mktemp("evidence") / "m.db"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{path}", scope=PLATFORM)
    seal_database(database)
    yield town_of(database)
    database.close()


def write(town: Town, folder: Path, epoch: int | None = None, key: SigningKey = KEY) -> dict[str, str]:
    """A pack in a folder."""
    with town.database.reading() as session:
        files = make_pack(session, town.now, "shop-ask", key, epoch)
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return files


def test_a_pack_holds_and_says_everything(database: Database, tmp_path: Path) -> None:
    """Members, datasets, consents, decisions and proofs of the deployment are in it, and verify offline."""
    town = town_of(database)
    files = write(town, tmp_path / "pack")
    report = verify_pack(tmp_path / "pack", {KEY.public_key})
    assert (report.ok, report.trusted, report.sentence) == (
        True,
        True,
        "Every file, signature and proof holds.",
    )
    bill = json.loads(files["bom.cdx.json"])
    kinds = [one["type"] for one in bill["components"]]
    assert sorted(kinds) == ["data", "data", *["machine-learning-model"] * 3]
    assert len(json.loads(files["consents.json"])) == len(json.loads(files["receipts.json"])) == 2
    assert all(one["replayed_equal"] for one in json.loads(files["decisions.json"]))
    proven = {one["table"] for one in json.loads(files["proofs.json"])}
    assert proven == {
        "audit",
        "publications",
        "bases",
        "experts",
        "datasets",
        "consents",
        "consent_events",
        "decisions",
    }
    summary = files["training-data-summary.md"]
    assert all(f"## {title}" in summary for title in ("1. General", "2. List of data", "3. Relevant data"))
    assert "acme/letters" in summary
    assert "beta/numbers" in files["training-data-summary.md"]
    assert "letters by acme, MIT" in files["attribution.md"]
    with database.reading() as session, pytest.raises(NotFound):
        make_pack(session, town.now, "nobody", KEY)


def test_the_bill_fits_the_published_schema(town: Town) -> None:
    """The bill of materials is valid CycloneDX 1.7, strictly, and the same facts give the same bytes."""
    with town.database.reading() as session:
        bills = [bill_of_materials(gather(session, town.now, "shop-ask")) for _ in range(2)]
    assert canonical_bytes(bills[0]) == canonical_bytes(bills[1])
    reference = Draft7Validator.FORMAT_CHECKER.checks("iri-reference")
    reference(lambda text: not isinstance(text, str) or bool(REFERENCE.fullmatch(text)))
    error: Any = JsonStrictValidator(SchemaVersion.V1_7).validate_str(json.dumps(bills[0]))
    assert error is None, error


def test_epochs_are_compared(database: Database, tmp_path: Path) -> None:
    """A withdrawal shows as the component that went; a pack of the earlier epoch still holds."""
    town = town_of(database)
    with town.register() as register:
        before = register.current_epoch()
        consent = register.consents("acme")[0]
        register.withdraw_consent(consent.id, town.ada)
    write(town, tmp_path / "old", before)
    write(town, tmp_path / "new")
    assert verify_pack(tmp_path / "old", {KEY.public_key}).ok
    found = compare_packs(tmp_path / "old", tmp_path / "new")
    assert f"expert/{consent.expert_id}" in found["removed"]
    assert found["added"] == []
    assert (found["from"], found["to"]) == (
        f"deployment/shop-ask@{before}",
        f"deployment/shop-ask@{before + 1}",
    )


def test_a_prohibition_and_a_renewal_are_evidence_too(database: Database, tmp_path: Path) -> None:
    """Words that forbid have no receipt, and a record that was renewed has one for all its words."""
    town = town_of(database)
    expert_id = town.act(lambda register: register.experts("acme"))[0].expert_id
    use = ForbidUse(expert_id=expert_id, purpose="sales")
    town.act(lambda register: register.forbid_use(use, town.ada))
    ends = consent(
        town.act(lambda register: register.experts("acme"))[0],
        purpose="medical",
        valid_until_us=town.now + DAY,
    )
    town.widen(town.ada, town.alan, ends)
    word = town.act(lambda register: register.consents("acme"))[-1]
    town.widen(town.ada, town.alan, ConsentRenew(consent_id=word.id))
    files = write(town, tmp_path / "pack")
    assert verify_pack(tmp_path / "pack", {KEY.public_key}).ok
    told = [(one["effect"], one["record_id"]) for one in json.loads(files["consents.json"])]
    assert sorted(effect for effect, _ in told) == ["forbid", "permit", "permit", "permit", "permit"]
    receipts = [one["document"]["header"]["record_id"] for one in json.loads(files["receipts.json"])]
    assert sorted(receipts) == sorted({record for effect, record in told if effect == "permit"})


def test_every_changed_file_is_found(town: Town, tmp_path: Path) -> None:
    """Each file that is changed, missing or put in is named; so is a key that nobody trusts."""
    folder = tmp_path / "pack"
    files = write(town, folder)
    for name, text in files.items():
        (folder / name).write_text(
            text.replace("shop-ask", "shop-bsk", 1) if "shop-ask" in text else text + " "
        )
        report = verify_pack(folder)
        assert not report.ok
        assert (name if name != "manifest.json" else "manifest") in report.sentence
        (folder / name).unlink()
        if name == "manifest.json":
            with pytest.raises(BrokenProof):
                verify_pack(folder)
        else:
            assert name in verify_pack(folder).sentence
        (folder / name).write_text(text)
    (folder / "more.txt").write_text("")
    assert "more.txt" in verify_pack(folder).sentence
    (folder / "more.txt").unlink()
    assert verify_pack(folder).ok
    assert not verify_pack(folder, {generate_key().public_key}).ok


def test_a_signed_lie_does_not_fit_the_proven_rows(town: Town, tmp_path: Path) -> None:
    """Whoever has a key of their own and signs other members or decisions cannot prove their rows."""
    forger = generate_key()
    lies: list[tuple[str, Callable[[Any], None]]] = [
        ("composition.json", lambda one: one["members"][0].update(bundle_digest="sha256:" + "0" * 64)),
        ("decisions.json", lambda one: one[0].update(output_digest="sha256:" + "0" * 64)),
        ("proofs.json", lambda one: one[-1]["row"].update(engine_version="9")),
    ]
    for name, change in lies:
        folder = tmp_path / name
        files = write(town, folder, key=forger)
        document = json.loads(files[name])
        change(document)
        (folder / name).write_text(json.dumps(document))
        manifest = json.loads(files["manifest.json"])
        manifest["files"][name] = digest_bytes((folder / name).read_bytes())
        del manifest["signature"]
        signed = {**manifest, "signature": forger.sign(canonical_bytes(manifest))}
        (folder / "manifest.json").write_bytes(canonical_bytes(signed))
        report = verify_pack(folder, {forger.public_key})
        assert not report.ok, name
        assert "proven" in report.sentence or "proof" in report.sentence

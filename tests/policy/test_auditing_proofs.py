# SPDX-License-Identifier: Apache-2.0
"""Trees, notes, proofs and bundles: what an auditor checks with nothing but files."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from town import START, Town

from model_core.packing import canonical
from model_core.packing.keys import generate_key
from policy.audit.bundle import verify_bundle, write_bundle
from policy.audit.chain import Audit
from policy.audit.notes import ORIGIN, Note, key_hash, read_notes, verifier_key, write_note
from policy.audit.proofs import RowProof, prove_consistency, prove_rows
from policy.audit.tree import (
    Levels,
    Root,
    consistency_path,
    is_consistent,
    root_from_inclusion,
    root_of,
)
from policy.consents.vault import Vault
from policy.errors import BrokenProof, NotFound
from tenants.accounts.database import Database

KEY = generate_key()


def leaves(count: int) -> list[bytes]:
    """Hashes of the leaves 0, 1, 2 and so on."""
    return [hashlib.sha256(b"\x00" + str(n).encode()).digest() for n in range(count)]


def test_trees_are_those_of_the_packing_room() -> None:
    """For every size up to 70 the streamed root, the levels' root and the independent tree agree."""
    for count in range(71):
        expected = canonical.merkle_root([str(n).encode() for n in range(count)]).removeprefix("sha256:")
        streamed = Root()
        for leaf in leaves(count):
            streamed.add(leaf)
        assert streamed.digest().hex() == root_of(leaves(count)).hex() == expected
        assert Levels(leaves(count)).root.hex() == expected


def test_inclusion_holds_for_every_place_and_for_no_other() -> None:
    """Each leaf's path leads to the root from its own place and from no other place or size."""
    for count in range(1, 24):
        all_leaves = leaves(count)
        levels = Levels(all_leaves)
        for index, leaf in enumerate(all_leaves):
            path = levels.path(index)
            assert root_from_inclusion(leaf, index, count, path) == levels.root
            for other in range(count):
                if other != index:
                    assert root_from_inclusion(leaf, other, count, path) != levels.root


def test_consistency_holds_exactly_for_the_beginning() -> None:
    """Every earlier size is proven to be the beginning; another root or a changed step is refused."""
    for size in range(1, 24):
        later = leaves(size)
        for earlier in range(1, size + 1):
            path = consistency_path(later, earlier)
            roots = root_of(later[:earlier]), root_of(later)
            assert is_consistent(earlier, size, *roots, path)
            assert not is_consistent(earlier, size, hashlib.sha256(b"x").digest(), roots[1], path)
            for place in range(len(path)):
                changed = [*path[:place], b"\x07" * 32, *path[place + 1 :]]
                assert not is_consistent(earlier, size, *roots, changed)


@settings(max_examples=50)
@given(
    seals=st.integers(0, 2**40),
    length=st.integers(0, 2**40),
    at_us=st.integers(0, 2**53),
    more=st.integers(1, 3),
)
def test_notes_read_back_and_any_changed_byte_is_refused(
    seals: int, length: int, at_us: int, more: int
) -> None:
    """A file of notes reads as it was written, by the key that signed it alone."""
    note = Note(seals=seals, root="ab" * 32, length=length, head="sha256:" + "cd" * 32, at_us=at_us)
    text = write_note(note, KEY)
    read = read_notes(text * more, {KEY.public_key})
    assert [(one.seals, one.root, one.length, one.head, one.at_us) for one in read] == [
        (seals, note.root, length, note.head, at_us)
    ] * more
    for trusted in (set(), {generate_key().public_key}):
        with pytest.raises(BrokenProof):
            read_notes(text, trusted)
    with pytest.raises(BrokenProof):
        read_notes(text.replace("at_us ", "at_us 1"), {KEY.public_key})


def test_notes_have_the_public_format() -> None:
    """Lines, key hash and signature stand where tools for signed notes look for them."""
    note = Note(seals=3, root="00" * 32, length=5, head="sha256:" + "1" * 64, at_us=7)
    lines = write_note(note, KEY).split("\n")
    assert lines[:3] == [ORIGIN, "3", base64.b64encode(bytes(32)).decode()]
    dash, name, signed = lines[6].split(" ")
    assert (dash, name, lines[5]) == ("\u2014", ORIGIN, "")
    raw = bytes.fromhex(KEY.public_key)
    expected = hashlib.sha256(f"{ORIGIN}\n".encode() + b"\x01" + raw).digest()[:4]
    assert base64.b64decode(signed)[:4] == expected == bytes.fromhex(key_hash(KEY.public_key))
    assert verifier_key(KEY.public_key).endswith(base64.b64encode(b"\x01" + raw).decode())


# -- proofs over a database -------------------------------------------------------------------------------


def busy(database: Database) -> Town:
    """A town in which something happened."""
    town = Town(database)
    town.open_all(town.expert())
    town.budget("shop", 1_000_000)
    town.reserve()
    return town


def test_rows_are_proven_and_nothing_else_is(database: Database) -> None:
    """A row, an audit record and a row with a key of two parts lead to the signed root; no other does."""
    town = busy(database)
    with town.register() as register:
        consent = register.consents("acme")[0].id
    wanted = [
        ("consents", consent),
        ("audit", "1"),
        ("consent_events", json.dumps([consent, 0], separators=(",", ":"))),
    ]
    with database.reading() as session:
        proofs = prove_rows(session, wanted)
        point = Audit(session, START).checkpoint(KEY)
        with pytest.raises(NotFound):
            prove_rows(session, [("consents", "con_nobody")])
    (note,) = read_notes(point.note, {KEY.public_key})
    for proof in proofs:
        read = RowProof.model_validate_json(proof.model_dump_json())
        assert read.holds()
        assert (read.root, read.size) == (note.root, note.seals)
        other = {**read.row, next(iter(read.row)): "something else"}
        for change in (
            {"row": other},
            {"key": "x", "table": "grants"},
            {"index": read.index + 1},
            {"size": 99},
        ):
            assert not read.model_copy(update=change).holds()
        moved = read.seal.model_copy(update={"at_us": 1})
        assert not read.model_copy(update={"seal": moved}).holds()


def test_growth_is_consistent(database: Database) -> None:
    """What a checkpoint counted is the beginning of every later tree."""
    town = busy(database)
    with database.reading() as session:
        point = Audit(session, START).checkpoint(KEY)
    town.budget("shop", 2_000_000)
    with database.reading() as session:
        proof = prove_consistency(session, point.seals)
        with pytest.raises(NotFound):
            prove_consistency(session, proof.size + 1)
    assert proof.holds()
    assert (proof.earlier_root, proof.size) == (point.seals_root, point.seals + 1)
    assert not proof.model_copy(update={"root": point.seals_root}).holds()


# -- bundles ----------------------------------------------------------------------------------------------


def export(database: Database, folder: Path) -> str:
    """Writes a bundle; returns the checkpoint that a careful person kept elsewhere."""
    with database.reading() as session:
        point = Audit(session, START).checkpoint(KEY)
        write_bundle(session, folder, point.note, point.public_key)
    return point.note


def test_a_bundle_verifies_offline(database: Database, tmp_path: Path) -> None:
    """An exported bundle holds; without a checkpoint its tail is not proven, with one it is."""
    busy(database)
    note = export(database, tmp_path / "bundle")
    report = verify_bundle(tmp_path / "bundle")
    assert (report.ok, report.tail) == (True, "not proven")
    assert "tail not proven" in report.sentence
    assert report.rows > 40
    report = verify_bundle(tmp_path / "bundle", [note], {KEY.public_key})
    assert (report.ok, report.tail, report.sentence) == (True, "proven", "Every record holds.")
    with pytest.raises(BrokenProof):
        verify_bundle(tmp_path / "bundle", [note], {generate_key().public_key})
    with pytest.raises(BrokenProof):
        verify_bundle(tmp_path)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "bundle").rglob("*"))


def test_bundles_name_nobody_from_the_vault(database: Database, tmp_path: Path) -> None:
    """What stands in the vault is in a bundle as digests alone, which hold like rows, and in no proof."""
    busy(database)
    with database.unit_of_work() as session:
        ref = Vault(session, START).keep("acme", "person", "Ada Lovelace")
    with database.reading() as session, pytest.raises(NotFound):
        prove_rows(session, [("personal_vault", ref)])
    note = export(database, tmp_path / "bundle")
    assert all(b"Lovelace" not in path.read_bytes() for path in (tmp_path / "bundle").rglob("*.*"))
    assert verify_bundle(tmp_path / "bundle", [note], {KEY.public_key}).ok
    lines = tmp_path / "bundle" / "tables" / "personal_vault.jsonl"
    lines.write_text(json.dumps({"key": ref, "digest": "00" * 32}) + "\n")
    report = verify_bundle(tmp_path / "bundle", [note], {KEY.public_key})
    assert (report.reason, report.bad) == ("row_edited", (f"personal_vault {ref}",))


def _change(line: str) -> str:
    document = json.loads(line)
    row = document["row"]
    name = next(name for name in row if name not in {"id", "tenant"})
    return json.dumps({**document, "row": {**row, name: f"{row[name]}x"}})


@pytest.mark.parametrize("kind", ["edit", "delete", "insert", "swap", "truncate", "cut"])
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_bundle_that_was_tampered_with_is_refused(
    kind: str, data: st.DataObject, bundle: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any line of any file of a bundle, changed in any way, is found; a cut tail only with the checkpoint."""
    original, note = bundle
    folder = tmp_path_factory.mktemp("forged") / "bundle"
    shutil.copytree(original, folder)
    files = sorted(
        path for path in folder.rglob("*.jsonl") if len(path.read_text().splitlines()) > (kind == "swap")
    )
    if kind == "cut":
        files = [folder / "seals.jsonl", folder / "tables" / "audit.jsonl"]
    path = data.draw(st.sampled_from(files))
    lines = path.read_text().splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    if kind == "edit":
        line = json.loads(lines[place])
        lines[place] = (
            _change(lines[place]) if "row" in line else json.dumps({**line, "at_us": line["at_us"] + 1})
        )
    elif kind == "delete":
        del lines[place]
    elif kind == "insert":
        line = json.loads(lines[place])
        added = {**line, "key": "another"} if "row" in line else {**line, "seq": len(lines) + 1}
        lines.append(json.dumps(added))
    elif kind == "swap":
        other = (place + 1) % len(lines)
        one, two = json.loads(lines[place]), json.loads(lines[other])
        field = "key" if "row" in one else "seq"
        one[field], two[field] = two[field], one[field]
        lines[place], lines[other] = json.dumps(one), json.dumps(two)
    elif kind == "truncate":
        lines = []
    else:
        lines = lines[:-1]
    path.write_text("".join(f"{line}\n" for line in lines))
    report = verify_bundle(folder, [note], {KEY.public_key})
    shutil.rmtree(folder)
    assert not report.ok
    assert report.sentence


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Any:
    """One exported bundle, and the checkpoint that was kept."""
    from policy.audit.sealing import seal_database
    from tenants.accounts.scope import PLATFORM

    folder = tmp_path_factory.mktemp("bundle")
    (folder / "m.db").write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{folder}/m.db", scope=PLATFORM)
    seal_database(database)
    try:
        busy(database)
        return folder / "bundle", export(database, folder / "bundle")
    finally:
        database.close()


@pytest.mark.parametrize(
    "key", ["", "x", "9" * 30, "\x00", "[", "[1]", '["a","b"]', "[" * 3000, "null", "1.5"]
)
def test_keys_that_can_not_be_one_are_not_found(database: Database, key: str) -> None:
    """Whatever stands for a key, of one part or two, is refused in words."""
    busy(database)
    with database.reading() as session:
        for table in ("audit", "consents", "consent_events", "no_table"):
            with pytest.raises(NotFound):
                prove_rows(session, [(table, key)])

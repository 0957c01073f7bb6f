# SPDX-License-Identifier: Apache-2.0
"""Erasure over the doors that people use: files go, what stays is named, and the record verifies offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.artifacts import RemovingDirectoryStore, RemovingStore
from cluster.office.erasing import carry_out
from cluster.office.upkeep import go_on_erasing
from cluster.operations.staging import documents_path
from model_core.errors import StoreUnavailable
from model_core.packing.store import ArtifactStore
from policy.consents.receipts import check_receipt


def _kinds(erasure: dict[str, Any], outcome: str) -> set[str]:
    return {copy["kind"] for copy in erasure["copies"] if copy["outcome"] == outcome}


def _requested(town: Any, kind: str = "expert", subject: str = "") -> dict[str, Any]:
    body = {"subject_kind": kind, "subject_id": subject or town.ids["expert"], "reason": "withdrawn"}
    asked: dict[str, Any] = town.post("ada", "/erasures", **body)
    return asked


def _later(town: Any, erasure_id: str) -> dict[str, Any]:
    """What the office's next look does, once leases are over."""

    def look(desk: Any) -> None:
        desk.now_us += 60_000_000
        carry_out(desk, erasure_id)

    town.wait(town.office.do(look, wakes=False))
    found: dict[str, Any] = town.get("ada", f"/erasures/{erasure_id}")
    return found


def test_an_expert_is_gone_from_every_disk(town: Any) -> None:
    """Asked, approved, executed: bundle and packed files are gone, and the tombstone keeps digests."""
    digest = town.get("ada", f"/experts/{town.ids['expert']}")["bundle_digest"]
    stored = Path(town.settings.artifacts) / "bundles" / digest.replace(":", "-")
    packed = town.home.weights / f"expert-{digest.removeprefix('sha256:')}-v1.weights"
    packed.write_bytes(b"packed")
    assert stored.is_dir()
    asked = _requested(town)
    assert {"artifact", "recipient", "residual", "backup"} <= {copy["kind"] for copy in asked["copies"]}
    assert stored.is_dir()
    assert town.ask("ada", "POST", f"/erasures/{asked['id']}/approve", json={}).status_code == 403
    town.post("bob", f"/erasures/{asked['id']}/approve")
    assert town.get("dev", "/deployments/notes-research")["composition"]["members"] == []
    done = town.post("operator", f"/erasures/{asked['id']}/execute")
    assert not stored.exists()
    assert not packed.exists()
    assert done["state"] == "completed"
    assert _kinds(done, "erased") == {"artifact", "packed_files"}
    assert _kinds(done, "kept") == {"tombstone", "backup"}
    shown = town.get("ada", f"/experts/{town.ids['expert']}")
    assert (shown["state"], shown["bundle_digest"]) == ("erased", digest)
    assert town.post("aud", "/audit/verify")["ok"]


def test_the_record_verifies_offline_and_recipients_take_note(town: Any) -> None:
    """The consumer finds a letter and acknowledges; the signed record says who was told and what remains."""
    asked = _requested(town)
    assert town.ask("ada", "GET", f"/erasures/{asked['id']}/record").status_code == 409
    town.post("carol", f"/erasures/{asked['id']}/approve")
    town.post("operator", f"/erasures/{asked['id']}/execute")
    [letter] = town.get("dev", "/notifications")["items"]
    assert letter["object"] == asked["id"]
    assert town.get("eve", "/notifications")["items"] == []
    assert town.ask("eve", "POST", f"/notifications/{letter['id']}/acknowledge", json={}).status_code == 404
    assert town.post("dev", f"/notifications/{letter['id']}/acknowledge")["acknowledged_by"]
    record = town.get("ada", f"/erasures/{asked['id']}/record")
    key = town.get("ada", "/receipts/key")["public_key"]
    assert check_receipt(json.dumps(record).encode(), {key}).kind == "erasure-record"
    assert [one["tenant"] for one in record["document"]["recipients"]] == ["apps"]
    assert record["document"]["residual_influence"]


def test_servers_have_stopped_before_it_is_complete(town: Any) -> None:
    """A server that says nothing keeps the erasure open until its lease is over, and the record says how."""
    epoch = town.get("dev", "/epochs/current")["epoch"]
    snapshot = town.wait(town.office.wait_epoch("host-a", 0)).snapshot_digest
    town.wait(town.office.acknowledge("host-a", epoch, snapshot, {}))
    asked = _requested(town)
    town.post("bob", f"/erasures/{asked['id']}/approve")
    done = _later(town, asked["id"])
    [server] = [copy for copy in done["copies"] if copy["kind"] == "server"]
    assert (server["outcome"], server["facts"]["how"]) == ("erased", "lease_ran_out")
    assert done["state"] == "completed"


def test_a_hold_stops_it_halfway(town: Any) -> None:
    """A hold that comes after the approval keeps the bundle; lifted, the office goes on by itself."""
    asked = _requested(town)
    town.post("bob", f"/erasures/{asked['id']}/approve")
    body = {"subject_kind": "expert", "subject_id": town.ids["expert"], "reason": "case"}
    hold = town.post("carol", "/holds", **body)
    answer = town.ask("operator", "POST", f"/erasures/{asked['id']}/execute", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "legal_hold")
    standing = town.get("ada", f"/experts/{town.ids['expert']}/effective")
    assert (standing["serving"], standing["because"]) == ("denied", ["OWNER_DENIES", "LEGAL_HOLD", "ERASED"])
    town.wait(go_on_erasing(town.office))
    assert town.get("ada", f"/erasures/{asked['id']}")["state"] == "approved"
    town.post("dora", f"/holds/{hold['id']}/lift", reason="closed")
    town.wait(go_on_erasing(town.office))
    assert town.get("ada", f"/erasures/{asked['id']}")["state"] == "completed"


def test_an_interrupted_step_is_taken_up_again(town: Any) -> None:
    """What an office removed that died before writing it down is found gone, and the rest goes."""
    digest = town.get("ada", f"/experts/{town.ids['expert']}")["bundle_digest"]
    asked = _requested(town)
    town.post("bob", f"/erasures/{asked['id']}/approve")

    def dies(desk: Any) -> None:
        desk.artifacts.remove_bundle(digest)
        raise KeyError("the office dies here")

    with pytest.raises(Exception, match="unexpected"):
        town.wait(town.office.do(dies, wakes=False))
    done = town.post("operator", f"/erasures/{asked['id']}/execute")
    assert "artifact" in _kinds(done, "absent")
    assert done["state"] == "completed"


def test_a_store_that_fails_keeps_nothing_else_from_going(town: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store fails, other copies and erasures are done and say so; the bundle follows later."""
    digest = town.get("ada", f"/experts/{town.ids['expert']}")["bundle_digest"]
    packed = town.home.weights / f"expert-{digest.removeprefix('sha256:')}-v1.weights"
    packed.write_bytes(b"packed")
    expert, dataset = _requested(town), _requested(town, "dataset", town.ids["dataset"])
    for asked in (expert, dataset):
        town.post("bob", f"/erasures/{asked['id']}/approve")

    def fails(_store: Any, _digest: str) -> bool:
        raise StoreUnavailable("The disk failed.")

    with monkeypatch.context() as patched:
        patched.setattr(RemovingDirectoryStore, "remove_bundle", fails)
        town.wait(go_on_erasing(town.office))
    assert town.get("ada", f"/erasures/{dataset['id']}")["state"] == "completed"
    waiting = town.get("ada", f"/erasures/{expert['id']}")
    assert (waiting["state"], packed.exists()) == ("approved", False)
    assert _kinds(waiting, "erased") == {"packed_files"}
    town.wait(go_on_erasing(town.office))
    done = town.get("ada", f"/erasures/{expert['id']}")
    assert (done["state"], _kinds(done, "erased")) == ("completed", {"artifact", "packed_files"})


def test_documents_and_work_folders_go(town: Any) -> None:
    """Erasing a dataset removes documents and folders of finished jobs, and names what learned from it."""
    job = town.post("ada", "/jobs", name="cut", dataset_id=town.ids["dataset"], recipe={"steps": 1})
    folder = town.home.jobs("north") / job["id"]
    folder.mkdir(parents=True)
    (folder / "checkpoint.bin").write_bytes(b"optimizer state")
    data = town.get("ada", f"/datasets/{town.ids['dataset']}")
    documents = documents_path(town.home, "north", data["stored_digest"])
    assert documents.is_file()
    asked = _requested(town, "dataset", town.ids["dataset"])
    town.post("bob", f"/erasures/{asked['id']}/approve")
    waiting = town.post("operator", f"/erasures/{asked['id']}/execute")
    assert (waiting["state"], folder.is_dir()) == ("approved", True)
    town.post("ada", f"/jobs/{job['id']}/cancel")
    done = town.post("operator", f"/erasures/{asked['id']}/execute")
    assert done["state"] == "completed"
    assert not documents.exists()
    assert not folder.exists()
    assert town.ids["expert"] in {copy["place"] for copy in done["copies"] if copy["kind"] == "residual"}


def test_personal_data_is_forgotten(town: Any) -> None:
    """After the erasure of a record's personal data its owner reads None, and the name is in no table."""
    name = "Anneliese Vergissmichnicht"
    drafted = town.post("ada", "/consents", expert_id="*", purpose="education", subject=name, evidence=name)
    town.approve("bob", drafted)
    word = town.get("ada", "/consents")["items"][-1]
    asked = _requested(town, "personal_data", word["record_id"])
    town.post("bob", f"/erasures/{asked['id']}/approve")
    assert town.post("operator", f"/erasures/{asked['id']}/execute")["state"] == "completed"
    record = town.get("ada", f"/consents/{word['id']}/record")
    assert (record["subject"], record["evidence"], record["status"]) == (None, None, "given")

    def everywhere(desk: Any) -> str:
        from sqlalchemy import inspect, text

        tables = inspect(desk.session.get_bind()).get_table_names()
        return "".join(repr(desk.session.execute(text(f'SELECT * FROM "{table}"')).all()) for table in tables)

    assert name not in town.wait(town.office.do(everywhere, wakes=False))
    assert town.post("aud", "/audit/verify")["ok"]


def test_a_store_forgets_whole_bundles(bundles: Any, tmp_path: Path) -> None:
    """Removed, a bundle is not there and may be put again; removing it twice says that nothing was there."""
    store = RemovingDirectoryStore(tmp_path / "store")
    base = bundles.base(tmp_path / "base", calibrated=False)
    store.put_bundle(base.folder, base.digest)
    store.get_bundle(base.digest)
    assert isinstance(store, RemovingStore)
    assert store.remove_bundle(base.digest)
    assert not store.has(base.digest)
    assert store.digests() == ()
    assert not store.remove_bundle(base.digest)
    again: ArtifactStore = store
    assert again.put_bundle(base.folder, base.digest) == base.digest

# SPDX-License-Identifier: Apache-2.0
"""Taking weights out: denied unless the owner named it, logged with its recipient, byte for byte."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from cluster.client import MarketplaceClient
from cluster.operations.intake import tar_bytes, tar_size_bytes, unpack_bundle
from model_core.packing.bundle import check_bundle

_EXPORT = "/deployments/notes-research/export"
_ACTION = {"action": "export_weights", "purpose": "research"}


def _let_leave(town: Any) -> None:
    """Owner and compliance permit, each in its own words, that weights leave."""
    expert = {"expert_id": town.ids["expert"]}
    offered = town.post(
        "ada",
        "/changes",
        title="Let the notes leave",
        items=[
            {"kind": "consent.give", **expert, **_ACTION},
            {"kind": "grant.give", **expert, "consumer_tenant": "apps", "action": "export_weights"},
        ],
    )
    town.approve("bob", offered)
    town.approve("dora", town.post("carol", "/rules", text="Research may take weights.", **_ACTION))


def test_serving_permits_no_export(town: Any) -> None:
    """An expert that may be served does not leave, the sentence says what is missing, and nothing changes."""
    before = town.state()
    refused = town.ask("dev", "POST", _EXPORT, json={})
    assert refused.status_code == 403
    assert refused.json()["code"] == "export_refused"
    assert "export_weights" in refused.json()["detail"]
    assert town.state() == before


def test_what_owner_and_staff_permit_leaves(town: Any) -> None:
    """With consent, grant and rule for it the composition leaves, and the decision is logged and replays."""
    _let_leave(town)
    ticket = town.post("dev", _EXPORT)
    assert [member["expert_id"] for member in ticket["members"]] == [town.ids["expert"]]
    assert ticket["left_out"] == []
    assert ticket["tenant"] == "apps"
    shown = town.get("ada", f"/decisions/{ticket['decision_id']}")
    assert shown["question"]["action"] == "export_weights"
    assert town.get("carol", f"/decisions/{ticket['decision_id']}/replay")["equal"] is True


def test_only_permitted_takes_the_base_alone(town: Any) -> None:
    """What may not leave can be left out on request, and is named."""
    town.approve("dora", town.post("carol", "/rules", text="Research may take weights.", **_ACTION))
    ticket = town.post("dev", _EXPORT, only_permitted=True)
    assert ticket["members"] == []
    assert ticket["left_out"] == ["north/notes"]


def test_strangers_export_nothing(town: Any) -> None:
    """Another tenant's deployment does not exist for one who would export it; an owner has no right to."""
    assert town.ask("eve", "POST", _EXPORT, json={}).status_code == 404
    assert town.ask("ada", "POST", _EXPORT, json={}).status_code == 403


def test_bundles_arrive_byte_for_byte(town: Any, tmp_path: Path) -> None:
    """Every bundle of the export is fetched as it was sealed, and each fetching is in the audit."""
    _let_leave(town)
    ticket = town.post("dev", _EXPORT)
    digests = [ticket["base_digest"], ticket["members"][0]["bundle_digest"]]
    with MarketplaceClient(url=town.url, key=town.keys["dev"]) as client:
        for number, digest in enumerate(digests):
            archive = tmp_path / f"{number}.tar"
            client.download(f"/api/v1{_EXPORT}/{digest}", archive)
            assert unpack_bundle(archive, tmp_path / str(number)).digest == digest
    records = town.get("aud", "/audit/records", limit=500)["items"]
    exports = [json.dumps(record) for record in records if "deployments.export" in json.dumps(record)]
    for digest in digests:
        assert any(digest in record for record in exports)


def test_a_withdrawn_expert_is_not_fetched(town: Any, tmp_path: Path) -> None:
    """Between ticket and fetching the owner may withdraw: then the bundle is no longer there."""
    _let_leave(town)
    ticket = town.post("dev", _EXPORT)
    town.post("ada", f"/experts/{town.ids['expert']}/suspend")
    refused = town.ask("dev", "POST", f"{_EXPORT}/{ticket['members'][0]['bundle_digest']}", json={})
    assert refused.status_code == 404


def test_other_bundles_are_not_in_the_export(town: Any) -> None:
    """The route hands out nothing but the export's own bundles."""
    town.approve("dora", town.post("carol", "/rules", text="Research may take weights.", **_ACTION))
    expert = town.get("ada", f"/experts/{town.ids['expert']}")["bundle_digest"]
    assert town.ask("dev", "POST", f"{_EXPORT}/{expert}", json={}).status_code == 404
    assert town.ask("dev", "POST", f"{_EXPORT}/sha256:{'0' * 64}", json={}).status_code == 404


def test_archives_are_tar(tmp_path: Path) -> None:
    """The streamed archive is as long as announced and any tar reads it back."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name, size in (("a.json", 0), ("b.json", 512), ("c.json", 1000)):
        (folder / name).write_bytes(bytes([7]) * size)
    archive = tmp_path / "x.tar"
    archive.write_bytes(b"".join(tar_bytes(folder)))
    assert archive.stat().st_size == tar_size_bytes(folder)
    with tarfile.open(archive) as packed:
        assert {member.name: member.size for member in packed} == {"a.json": 0, "b.json": 512, "c.json": 1000}


def test_a_fetched_bundle_is_still_sealed(town: Any, tmp_path: Path) -> None:
    """Both signatures travel with the weights."""
    _let_leave(town)
    digest = town.post("dev", _EXPORT)["members"][0]["bundle_digest"]
    reply = town.ask("dev", "POST", f"{_EXPORT}/{digest}", json={})
    archive = tmp_path / "x.tar"
    archive.write_bytes(reply.content)
    folder = tmp_path / "bundle"
    unpack_bundle(archive, folder)
    assert {one.role for one in check_bundle(folder).seal.signatures} == {"owner", "admission"}

# SPDX-License-Identifier: Apache-2.0
"""Bad input over every door: the right status, a stable code, a sentence that helps, and unchanged state."""

from __future__ import annotations

import io
import json
import pickle
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from cluster.operations.intake import pack_bundle
from model_core.packing.keys import load_or_create_key

NOWHERE = "0" * 32
JSON = "application/json"
LINES = "application/x-ndjson"
TAR = "application/x-tar"
PICKLE = pickle.dumps({"weights": [1.0]})
NOTES = {"name": "more-notes", "license": "CC0-1.0"}


class Bad(NamedTuple):
    """One bad request: who sends what, and how it is refused."""

    name: str
    who: str
    method: str
    path: str
    status: int
    code: str
    options: dict[str, Any] = {}  # noqa: RUF012 - read only


def _json(**body: Any) -> dict[str, Any]:
    return {"json": body}


def _raw(content: bytes, media_type: str = JSON, **params: Any) -> dict[str, Any]:
    return {"content": content, "headers": {"Content-Type": media_type}, "params": params}


def _line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


MANAGEMENT = [
    # who
    Bad("unknown key", "mk_key_" + NOWHERE + "_" + "x" * 43, "GET", "/me", 401, "key_unknown"),
    Bad("not a key", "short", "GET", "/me", 401, "missing_key"),
    Bad("key with spaces", "mk key with spaces", "GET", "/me", 401, "missing_key"),
    Bad("wrong role", "dev", "POST", "/tenants", 403, "role_required", _json(slug="x", title="X")),
    Bad("escalation", "ada", "POST", "/keys", 403, "role_required",
        _json(tenant="north", principal="ada", roles=["compliance"])),
    Bad("platform role for a tenant", "operator", "POST", "/keys", 422, "role_refused",
        _json(tenant="north", principal="x", roles=["compliance"])),
    # other tenants' objects
    Bad("foreign dataset", "sue", "GET", "/datasets/{dataset}", 404, "object_unknown"),
    Bad("job on a foreign dataset", "sue", "POST", "/jobs", 404, "object_unknown",
        _json(name="j", dataset_id="{dataset}")),
    Bad("foreign consent", "sue", "POST", "/consents/{consent}/withdraw", 404, "object_unknown"),
    Bad("foreign grant", "sue", "POST", "/grants/{grant}/revoke", 404, "object_unknown"),
    Bad("foreign expert suspended", "sue", "POST", "/experts/{expert}/suspend", 404, "object_unknown"),
    Bad("foreign expert offered", "sue", "PUT", "/listings/{expert}", 404, "object_unknown",
        _json(license="MIT", price_micro_per_1k_tokens=1)),
    Bad("consent for a foreign expert", "sue", "POST", "/consents", 404, "object_unknown",
        _json(expert_id="{expert}", purpose="research")),
    Bad("foreign deployment", "eve", "GET", "/deployments/{deployment}", 404, "object_unknown"),
    Bad("foreign deployment removed", "eve", "DELETE", "/deployments/{deployment}", 404, "object_unknown"),
    Bad("foreign key", "ada", "POST", "/keys/{key-dev}/revoke", 404, "object_unknown"),
    # objects that are not there
    Bad("no such job", "ada", "GET", f"/jobs/job_{NOWHERE}", 404, "object_unknown"),
    Bad("no such change", "carol", "GET", f"/changes/chg_{NOWHERE}", 404, "object_unknown"),
    Bad("no such decision", "aud", "GET", f"/decisions/dec_{NOWHERE}", 404, "not_found_in_register"),
    Bad("no such epoch", "aud", "GET", "/epochs/9999/snapshot", 404, "not_found_in_register"),
    Bad("no such route", "ada", "GET", "/nothing/here", 404, "unknown_operation"),
    Bad("no such method", "ada", "DELETE", "/me", 405, "wrong_method"),
    Bad("no such page", "ada", "GET", "/jobs", 404, "object_unknown", {"params": {"after": "job_x"}}),
    # bodies
    Bad("not JSON", "ada", "POST", "/jobs", 400, "malformed_body", _raw(b"{")),
    Bad("an array", "ada", "POST", "/jobs", 400, "malformed_body", _raw(b"[]")),
    Bad("NaN", "ada", "POST", "/jobs", 400, "malformed_body", _raw(b'{"name": NaN}')),
    Bad("field twice", "ada", "POST", "/jobs", 400, "malformed_body", _raw(b'{"name":"a","name":"b"}')),
    Bad("not UTF-8", "ada", "POST", "/jobs", 400, "malformed_body", _raw(b'{"name":"\xff"}')),
    Bad("half a surrogate", "ada", "POST", "/jobs", 400, "malformed_body", _raw(b'{"name":"\\ud800"}')),
    Bad("zero character", "ada", "POST", "/jobs", 400, "malformed_body", _raw(b'{"name":"\\u0000"}')),
    Bad("deep nest", "ada", "POST", "/jobs", 400, "malformed_body", _raw(b'{"a":' * 50 + b"1" + b"}" * 50)),
    Bad("very deep nest", "ada", "POST", "/jobs", 400, "malformed_body",
        _raw(b'{"a":' * 90_000 + b"1" + b"}" * 90_000)),
    Bad("huge number", "ada", "POST", "/jobs", 400, "malformed_body", _raw(b'{"a":' + b"9" * 9000 + b"}")),
    Bad("large JSON", "ada", "POST", "/jobs", 413, "too_large", _raw(b" " * (1 << 20) + b"{}")),
    Bad("another type", "ada", "POST", "/jobs", 415, "unsupported_body", _raw(b"<job/>", "text/xml")),
    Bad("unknown field", "ada", "POST", "/jobs", 422, "invalid_request",
        _json(name="j", dataset_id="{dataset}", code="print()")),
    Bad("missing field", "ada", "POST", "/jobs", 422, "invalid_request", _json(name="j")),
    Bad("field given twice", "ada", "POST", "/jobs", 422, "invalid_request",
        {"json": {"name": "j"}, "params": {"name": "k"}}),
    Bad("wrong type", "ada", "GET", "/jobs", 422, "invalid_request", {"params": {"limit": "many"}}),
    Bad("beyond the bound", "ada", "GET", "/jobs", 422, "invalid_request", {"params": {"limit": "100000"}}),
    Bad("long idempotency key", "ada", "POST", "/jobs", 422, "invalid_request",
        {"json": {}, "headers": {"Idempotency-Key": "k" * 300}}),
    # names
    Bad("traversal in a name", "ada", "POST", "/jobs", 422, "invalid_name",
        _json(name="../../etc/passwd", dataset_id="{dataset}")),
    Bad("traversal in a tenant", "operator", "POST", "/tenants", 422, "invalid_name",
        _json(slug="../up", title="Up")),
    Bad("traversal in a data set's name", "ada", "POST", "/datasets", 422, "invalid_name",
        _raw(_line(id="a", text="b"), LINES, name="../x", license="MIT")),
    Bad("traversal in a path", "ada", "GET", "/experts/..%2F..%2Fkeys", 404, "unknown_operation"),
    Bad("odd deployment name", "dev", "PUT", "/deployments/A%20B", 422, "invalid_name",
        _json(purpose="research", region="eu", commercial=False)),
    Bad("SQL in a filter", "ada", "GET", "/decisions", 422, "invalid_request",
        {"params": {"epoch": "1 OR 1=1"}}),
    Bad("name taken", "operator", "POST", "/tenants", 409, "name_taken", _json(slug="north", title="N")),
    # terms
    Bad("no license expression", "ada", "PUT", "/listings/{expert}", 422, "invalid_license_expression",
        _json(license="MIT OR OR", price_micro_per_1k_tokens=1)),
    Bad("unknown license", "ada", "PUT", "/listings/{expert}", 422, "invalid_license_expression",
        _json(license="LicenseRef-nobody-knows", price_micro_per_1k_tokens=1)),
    Bad("no license of documents", "ada", "POST", "/datasets", 422, "invalid_license_expression",
        _raw(_line(id="a", text="b"), LINES, name="n", license="see the README")),
    Bad("unknown purpose", "ada", "POST", "/consents", 422, "unknown_term",
        _json(expert_id="{expert}", purpose="world-domination")),
    Bad("unknown region", "dev", "PUT", "/deployments/d", 422, "unknown_term",
        _json(purpose="research", region="atlantis", commercial=False)),
    Bad("negative price", "ada", "PUT", "/listings/{expert}", 422, "invalid_request",
        _json(license="MIT", price_micro_per_1k_tokens=-1)),
    Bad("unknown base", "ada", "POST", "/jobs", 404, "object_unknown",
        _json(name="j", dataset_id="{dataset}", base_digest="sha256:" + "1" * 64)),
    # documents
    Bad("no documents", "ada", "POST", "/datasets", 400, "malformed_body", _raw(b"", LINES, **NOTES)),
    Bad("a line that is not JSON", "ada", "POST", "/datasets", 422, "dataset_refused",
        _raw(_line(id="a", text="b") + b"nope\n", LINES, **NOTES)),
    Bad("a document without text", "ada", "POST", "/datasets", 422, "dataset_refused",
        _raw(_line(id="a"), LINES, **NOTES)),
    Bad("an id twice", "ada", "POST", "/datasets", 422, "dataset_refused",
        _raw(_line(id="a", text="b") * 2, LINES, **NOTES)),
    Bad("a pickle as documents", "ada", "POST", "/datasets", 422, "dataset_refused",
        _raw(pickle.dumps({"id": "a"}), LINES, **NOTES)),
    Bad("documents of another type", "ada", "POST", "/datasets", 415, "unsupported_body",
        _raw(b"{}", JSON, **NOTES)),
    Bad("oversize upload", "ada", "POST", "/datasets", 413, "too_large",
        _raw(_line(id="a", text="b" * 400_000), LINES, **NOTES)),
    Bad("an upload field of one's own", "ada", "POST", "/datasets", 422, "invalid_request",
        _raw(_line(id="a", text="b"), LINES, upload="upl_" + NOWHERE, **NOTES)),
    Bad("another content under a taken name", "ada", "POST", "/datasets", 409, "name_taken",
        _raw(_line(id="a", text="b"), LINES, name="notes", license="CC0-1.0")),
    Bad("a pickle as a bundle", "ada", "POST", "/experts", 415, "unsupported_body",
        _raw(pickle.dumps({"weights": [1]}), TAR, dataset_ids="{dataset}")),
    Bad("an owner imports a base", "ada", "POST", "/bases", 403, "role_required", _raw(b"x", TAR)),
    # money and changes
    Bad("budget for nobody", "operator", "PUT", "/ledger/budgets/nobody", 404, "object_unknown",
        _json(limit_micro=1)),
    Bad("approval of a closed change", "carol", "POST", "/changes/{closed}/approve", 409, "change_closed",
        _json(digest="sha256:" + "0" * 64)),
]  # fmt: skip


def _filled(value: Any, ids: dict[str, str]) -> Any:
    if isinstance(value, str) and "{" in value:
        for name, one in ids.items():
            value = value.replace("{" + name + "}", one)
        return value
    if isinstance(value, dict):
        return {name: _filled(one, ids) for name, one in value.items()}
    return value


def _send(town: Any, bad: Bad) -> httpx.Response:
    key = town.keys.get(bad.who, bad.who)
    options = _filled(bad.options, town.ids)
    headers = {"Authorization": f"Bearer {key}"} | options.pop("headers", {})
    url = f"{town.url}/api/v1{_filled(bad.path, town.ids)}"
    return town.http.request(bad.method, url, headers=headers, **options)


def _check(answer: httpx.Response, status: int, code: str) -> None:
    document = answer.json()
    assert (answer.status_code, document["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["status"] == status
    assert document["type"].endswith(code)
    assert len(document["detail"]) > 20
    assert document["detail"].rstrip().endswith((".", ")", ":"))
    assert document["instance"] == answer.headers["x-request-id"]
    for inner in ("Traceback", "sqlalchemy", "/home", "site-packages", ".py"):
        assert inner not in answer.text


def test_every_bad_request_is_refused_and_changes_nothing(town: Any) -> None:
    """The table above: status, code and sentence are right, no row appears, no file stays behind."""
    town.ids["closed"] = town.get("carol", "/changes", state="approved")["items"][0]["id"]
    before = town.state()
    files = sorted(path for path in town.home.root.rglob("*") if "logs" not in path.parts)
    wrong: list[str] = []
    for bad in MANAGEMENT:
        try:
            _check(_send(town, bad), bad.status, bad.code)
        except (AssertionError, ValueError, KeyError) as error:
            wrong.append(f"{bad.name}: {str(error)[:400]}")
        if (now := town.state()) != before:
            wrong.append(f"{bad.name}: changed {set(now.items()) ^ set(before.items())}")
            before = now
    assert not wrong, "\n".join(wrong)
    assert town.staged() == []
    kept = {path for path in town.home.root.rglob("*") if "logs" not in path.parts}
    assert not {path for path in kept - set(files) if "sqlite" not in path.name}


def _tar(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


Spoil = Callable[[Path], None]


def _flip(folder: Path) -> None:
    content = bytearray((folder / "expert.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "expert.safetensors").write_bytes(bytes(content))


SPOILED: list[tuple[str, Spoil, int, str]] = [
    ("flipped bit", _flip, 422, "bundle_corrupt"),
    ("missing weights", lambda folder: (folder / "expert.safetensors").unlink(), 422, "bundle_missing_file"),
    (
        "pickle inside",
        lambda folder: _write(folder / "weights.pt", pickle.dumps([1])),
        422,
        "bundle_extra_file",
    ),
    ("no seal", lambda folder: (folder / "seal.json").unlink(), 422, "seal_missing"),
    ("manifest of prose", lambda folder: _write(folder / "manifest.json", b"hello"), 422, "manifest_invalid"),
    ("seal of prose", lambda folder: _write(folder / "seal.json", b"{}"), 422, "signature_invalid"),
]


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def test_bad_bundles_are_refused(
    town: Any, bundles: Any, bundle_sender: Callable[..., httpx.Response], tmp_path: Path
) -> None:
    """Corrupt, foreign and dangerous bundles are refused by what is wrong with them; nothing is stored."""
    bundles.owner = load_or_create_key(town.home.owner_key("north"))
    base = town.ids["base"]
    before = town.state()
    stored = town.home.root.joinpath("artifacts").rglob("*")
    names = {path.name for path in stored}
    answers: list[tuple[str, httpx.Response, int, str]] = []

    def make(name: str, **changes: Any) -> Path:
        fields = {"tenant": "north", "base_digest": base, "name": "other"} | changes
        return Path(bundles.expert(tmp_path / name.replace(" ", "-"), signed=False, **fields).folder)

    def send(name: str, folder: Path, status: int, code: str) -> None:
        answers.append(
            (
                name,
                bundle_sender(town, "ada", "/experts", folder, dataset_ids=town.ids["dataset"]),
                status,
                code,
            )
        )

    for name, spoil, status, code in SPOILED:
        folder = make(name)
        spoil(folder)
        send(name, folder, status, code)
    send("wrong base", make("wrong base", base_digest="sha256:" + "7" * 64), 422, "bundle_wrong_base")
    send("another base's tokenizer", make("tokenizer"), 422, "bundle_wrong_base")
    send("another tenant's", make("foreign", tenant="south"), 422, "untrusted_key")
    bundles.owner = load_or_create_key(town.home.owner_key("south"))
    send("another tenant's key", make("foreign key"), 422, "untrusted_key")
    for name, archive in {
        "traversal": _tar(("../../evil", b"x")),
        "absolute": _tar(("/etc/evil", b"x")),
        "symbolic link": _tar(("manifest.json", b""), kind=tarfile.SYMTYPE, link="/etc/passwd"),
        "hard link": _tar(("manifest.json", b""), kind=tarfile.LNKTYPE, link="seal.json"),
        "device": _tar(("manifest.json", b""), kind=tarfile.CHRTYPE),
    }.items():
        sent = town.upload("ada", "/experts", archive, TAR, dataset_ids=town.ids["dataset"])
        answers.append((name, sent, 422, "bundle_unsafe_path"))
    twice = _tar(("manifest.json", b"{}"), ("./manifest.json", b"{}"))
    sent = town.upload("ada", "/experts", twice, TAR, dataset_ids=town.ids["dataset"])
    answers.append(("file twice", sent, 422, "bundle_extra_file"))
    wrong = []
    for name, answer, status, code in answers:
        try:
            _check(answer, status, code)
        except AssertionError as error:
            wrong.append(f"{name}: {str(error)[:300]}")
    assert not wrong, "\n".join(wrong)
    assert town.state() == before
    assert {path.name for path in town.home.root.joinpath("artifacts").rglob("*")} == names
    assert town.staged() == []
    assert not (town.home.root / "evil").exists()


def test_truncated_archive_is_refused(town: Any, bundles: Any, tmp_path: Path) -> None:
    """An archive that ends in the middle of a file is no bundle."""
    bundles.owner = load_or_create_key(town.home.owner_key("north"))
    folder = bundles.expert(tmp_path / "cut", signed=False, tenant="north").folder
    pack_bundle(folder, tmp_path / "cut.tar")
    whole = (tmp_path / "cut.tar").read_bytes()
    for length in (100, 700, 1500):
        answer = town.upload("ada", "/experts", whole[:length], TAR, dataset_ids=town.ids["dataset"])
        assert answer.status_code in {415, 422}, answer.text
    assert town.staged() == []


def test_announced_length_alone_is_refused(town: Any) -> None:
    """A body that announces too much is refused before a byte of it is read."""
    host, port = town.url.removeprefix("http://").split(":")
    head = (
        "POST /api/v1/datasets?name=n&license=MIT HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {town.keys['ada']}\r\n"
        f"Content-Type: {LINES}\r\nContent-Length: 99999999999\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_revoked_key_and_suspended_tenant_open_nothing(town: Any) -> None:
    """A revoked key is 401 and a suspended tenant 403, on the API and on the OpenAI door."""
    town.post("operator", f"/keys/{town.ids['key-bob']}/revoke")
    assert town.ask("bob", "GET", "/me").json()["code"] == "key_revoked"
    town.post("carol", "/tenants/apps/suspend")
    answer = town.ask("dev", "GET", "/me")
    assert (answer.status_code, answer.json()["code"]) == (403, "tenant_suspended")
    asked = town.http.post(
        "/v1/completions",
        json={"model": "notes-research", "prompt": "x"},
        headers={"Authorization": f"Bearer {town.keys['dev']}"},
    )
    assert asked.status_code == 403
    assert asked.json()["error"]["code"] == "tenant_suspended"

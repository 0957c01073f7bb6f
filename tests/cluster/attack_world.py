# SPDX-License-Identifier: Apache-2.0
"""What the tests of attacks share: a victim's objects, an intruder's keys, and requests made of the table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from cluster.operations.table import Operation

INTRUDER = "south"
INTRUDER_ROLES = (["owner"], ["developer"], ["auditor"], ["owner", "developer", "auditor"])
NOWHERE = "0" * 32
#: Nobody's digest; also that of no base.
NO_DIGEST = "sha256:" + "0" * 64

#: Names of fields, in addresses and bodies, that hold the id of something that belongs to a tenant.
OWNED = {
    "bundle_digest": "bundle",
    "change_id": "change",
    "consent_id": "consent",
    "consumer_tenant": "tenant",
    "dataset_id": "dataset",
    "decision_id": "decision",
    "deployment": "deployment",
    "erasure_id": "erasure",
    "expert_id": "expert",
    "grant_id": "grant",
    "hold_id": "hold",
    "job_id": "job",
    "key_id": "key-bob",
    "name": "deployment",
    "notice_digest": "notice",
    "notification_id": "notification",
    "record_id": "record",
    "slug": "tenant",
    "stop_id": "stop",
    "tenant": "tenant",
}
#: What is common to all: bases, epochs, license keys and rules are everybody's to read.
COMMON = {"base_digest", "epoch", "key", "rule_id"}
#: What proofs of the audit chain are asked with; the whole chain is for the platform's staff.
CHAIN = {"earlier", "table"}


def found_victim(town: Any) -> dict[str, Any]:
    """Gives the tenant ``north`` one of everything, out of others' sight; answers its ids by kind."""
    job = town.post("ada", "/jobs", name="secret", dataset_id=town.ids["dataset"], recipe={"steps": 1})
    change = town.post("ada", "/consents", expert_id=town.ids["expert"], purpose="education")
    bundle = town.get("ada", f"/experts/{town.ids['expert']}")["bundle_digest"]
    reason = "It said too much."
    stop = town.post("ada", "/stops", kind="expert", subject=town.ids["expert"], reason=reason)
    decision = town.get("carol", "/decisions", deployment="notes-research")["items"][0]
    notice = town.post("ada", "/notices", language="en", version="1", text="A secret wording.")
    asked = town.post("ada", "/consents/requests", expert_id="*", purpose="education")
    subject = {"subject_kind": "dataset", "subject_id": town.ids["dataset"], "reason": "none"}
    erasure, hold = town.post("ada", "/erasures", **subject), town.post("carol", "/holds", **subject)
    letter = _letter(town)
    return town.ids | {
        "job": job["id"],
        "change": change["id"],
        "digest": change["digest"],
        "bundle": bundle,
        "stop": stop["id"],
        "decision": decision["id"],
        "erasure": erasure["id"],
        "hold": hold["id"],
        "notice": notice["id"],
        "notification": letter["id"],
        "record": asked["record_id"],
        "tenant": "north",
    }


def _letter(town: Any) -> dict[str, Any]:
    """A notification to ``north``, such as the office writes."""
    made = town.wait(town.office.do(lambda desk: desk.notifications.tell("north", "test", "x", {})))
    return {"id": made}


def missing(kind: str, victim: str) -> str:
    """An id of the same form that was never given out."""
    if kind in {"tenant", "deployment"}:
        return "nobody"
    if victim.startswith("sha256:"):
        return NO_DIGEST
    return victim.partition("_")[0] + "_" + NOWHERE


def intruders(town: Any) -> list[str]:
    """Makes keys of another tenant with every role that it can have; answers their names."""
    names = []
    for roles in INTRUDER_ROLES:
        name = "intruder-" + "-".join(roles)
        made = town.post("operator", "/keys", tenant=INTRUDER, principal=name, roles=roles)
        town.keys[name] = made["secret"]
        names.append(name)
    return names


def body_of(row: Operation, **changes: Any) -> dict[str, Any]:
    """A body that validates, with some fields changed."""
    plain = json.loads(json.dumps(dict(row.example)))
    fields = {name: value for name, value in plain.items() if name in row.request.model_fields}
    return {name: value for name, value in (fields | changes).items() if name not in row.placeholders}


def path_of(row: Operation, **ids: Any) -> str:
    """The row's address with its placeholders filled in."""
    path = row.path
    for name in row.placeholders:
        value = str(ids.get(name, row.example.get(name, "x")))
        path = path.replace("{" + name + "}", quote(value, safe=""))
    return path


def send(town: Any, who: str, row: Operation, ids: dict[str, Any], **changes: Any) -> Any:
    """Calls an operation with ids in its address and changed fields in its body or query."""
    path = path_of(row, **ids)
    if row.upload is not None:
        return town.upload(who, path, b"{}", row.upload.media_type, **body_of(row, **changes))
    if row.method == "GET":
        return town.ask(who, "GET", path, params=body_of(row, **changes))
    return town.ask(who, row.method, path, json=body_of(row, **changes))


def owned_fields(row: Operation) -> Iterator[tuple[str, str]]:
    """Fields of a row that can name something of a tenant's, each with the kind of thing."""
    for name in row.request.model_fields:
        if name in OWNED and not (name == "name" and row.noun != "deployments"):
            yield name, OWNED[name]

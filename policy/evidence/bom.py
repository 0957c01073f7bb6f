# SPDX-License-Identifier: Apache-2.0
"""The bill of materials of a composition, as CycloneDX 1.7 (ML-BOM).

The base, every expert version and every dataset is a component under its digest, with license, owner and
what it depends on; experts carry until when they may serve. The same facts give the same bytes. Written from
the published schema; knows no database.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from license_expression import ExpressionError, get_spdx_licensing

from policy.evidence.facts import Facts
from policy.records.assets import ExpertRecord
from tenants.accounts.datasets import DatasetRecord

SPEC: Final = "1.7"
_PREFIX: Final = "expert-marketplace:"

Document = dict[str, Any]


def bill_of_materials(facts: Facts) -> Document:
    """The whole document."""
    own = f"deployment/{facts.deployment.name}@{facts.publication.epoch}"
    base = f"base/{facts.base.base_digest}"
    experts = [_expert(facts, member) for member in facts.members]
    datasets = [_dataset(one) for one in facts.datasets]
    tree = [
        {"ref": own, "dependsOn": [base, *(one["bom-ref"] for one in experts)]},
        {"ref": base, "dependsOn": []},
        *(
            {
                "ref": f"expert/{one.expert_id}",
                "dependsOn": [base, *(f"dataset/{i}" for i in one.dataset_ids)],
            }
            for one in facts.members
        ),
        *({"ref": one["bom-ref"], "dependsOn": []} for one in datasets),
    ]
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"{facts.composition.digest}/{own}").urn,
        "version": 1,
        "metadata": {
            "timestamp": moment(facts.at_us),
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": facts.deployment.name,
                "version": str(facts.publication.epoch),
                "properties": _properties(
                    {
                        "epoch": facts.publication.epoch,
                        "snapshot": facts.publication.snapshot_digest,
                        "composition": facts.composition.digest,
                        "purpose": facts.deployment.purpose,
                        "region": facts.deployment.region,
                        "commercial": str(facts.deployment.commercial).lower(),
                        "valid_until": _until(facts.composition.valid_until_us),
                    }
                ),
            },
        },
        "components": [_base(facts), *experts, *datasets],
        "dependencies": tree,
    }


def moment(at_us: int) -> str:
    """A time as ISO 8601 in UTC, to the second."""
    return f"{datetime.fromtimestamp(at_us / 1e6, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _until(at_us: int | None) -> str:
    return "" if at_us is None else moment(at_us)


def _base(facts: Facts) -> Document:
    base = facts.base
    trained_on = {"type": "dataset", "name": "as described", "description": base.manifest.trained_on}
    return {
        "type": "machine-learning-model",
        "bom-ref": f"base/{base.base_digest}",
        "name": base.name,
        "hashes": _hashes(base.base_digest),
        "licenses": _licenses(base.license, None),
        "modelCard": {"modelParameters": {"datasets": [trained_on]}},
    }


def _expert(facts: Facts, member: ExpertRecord) -> Document:
    decision = next(one for one in facts.composition.decisions if one.expert_id == member.expert_id)
    return {
        "type": "machine-learning-model",
        "bom-ref": f"expert/{member.expert_id}",
        "publisher": member.tenant,
        "name": member.name,
        "version": str(member.version),
        "hashes": _hashes(member.bundle_digest),
        "licenses": _licenses(member.license or member.manifest.data_card.license, decision.valid_until_us),
        "modelCard": {"modelParameters": {"datasets": [{"ref": f"dataset/{i}"} for i in member.dataset_ids]}},
        "properties": _properties(
            {
                "expert_id": member.expert_id,
                "base": member.base_digest,
                "admitted": moment(member.admitted_at_us),
                "valid_until": _until(decision.valid_until_us),
                "price_micro_per_1k_tokens": member.price_micro_per_1k_tokens,
            }
        ),
    }


def _dataset(one: DatasetRecord) -> Document:
    card = one.card
    return {
        "type": "data",
        "bom-ref": f"dataset/{one.id}",
        "publisher": one.tenant,
        "name": one.name,
        "hashes": _hashes(one.stored_digest),
        "licenses": _licenses(one.license, None),
        "data": [{"type": "dataset", "name": one.name, "description": card.description}],
        "properties": _properties(
            {
                "documents": card.documents,
                "text_bytes": card.text_bytes,
                "tokens": "" if card.tokens is None else card.tokens,
                "languages": " ".join(card.languages),
                "collected_from": card.collected_from or "",
                "collected_to": card.collected_to or "",
                "merkle_root": card.merkle_root,
            }
        ),
    }


def _hashes(digest: str) -> list[Document]:
    return [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]


def _licenses(expression: str, until_us: int | None) -> list[Document]:
    """One SPDX license with its end, or an expression, or a name where SPDX knows neither."""
    try:
        parsed = get_spdx_licensing().parse(expression, validate=True, strict=True)
    except (ExpressionError, AttributeError):  # the library stumbles over some texts instead of refusing them
        parsed = None
    if parsed is None or "LicenseRef-" in expression:
        choice: Document = {"name": expression}
    elif parsed.isliteral:
        choice = {"id": str(parsed.key)}
    else:
        return [{"expression": expression}]
    if until_us is not None:
        choice["licensing"] = {"expiration": moment(until_us)}
    return [{"license": choice}]


def _properties(values: Mapping[str, object]) -> list[Document]:
    return [
        {"name": f"{_PREFIX}{name}", "value": str(value)} for name, value in values.items() if value != ""
    ]


def difference(old: Document, new: Document) -> Document:
    """What changed between two bills: components that came, went, or differ in a field.

    Args:
        old: the earlier document.
        new: the later one.
    """
    before, after = (_by_name(one) for one in (old, new))
    changed = {
        name: sorted(
            field
            for field in before[name].keys() | after[name].keys()
            if before[name].get(field) != after[name].get(field)
        )
        for name in before.keys() & after.keys()
    }
    return {
        "from": old["metadata"]["component"]["bom-ref"],
        "to": new["metadata"]["component"]["bom-ref"],
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "changed": {name: fields for name, fields in sorted(changed.items()) if fields},
    }


def _by_name(document: Document) -> dict[str, Document]:
    return {one["bom-ref"]: one for one in document["components"]}

# SPDX-License-Identifier: Apache-2.0
"""The evidence pack of a deployment, as one document."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import Field

from cluster.errors import RoleRequired
from cluster.operations.scope import sees_everything
from cluster.operations.table import STAFF, Answer, Operation, Request
from model_core.packing.keys import load_or_create_key
from policy.evidence.pack import make_pack
from tenants.roles import Principal

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class EvidenceQuery(Request):
    """Which deployment, as of which epoch."""

    name: str = Field(max_length=63)
    epoch: int | None = Field(default=None, ge=1, lt=2**53, description="the current one if left out")


class EvidencePack(Answer):
    """Files by name, each as text; ``manifest.json`` among them is signed over all others."""

    deployment: str
    epoch: int
    composition_digest: str
    public_key: str
    files: dict[str, str]


def evidence(desk: Desk, principal: Principal, request: EvidenceQuery) -> EvidencePack:
    """Bill of materials, consents, decisions, proofs and summaries of one deployment."""
    if not sees_everything(principal):
        raise RoleRequired(
            "The evidence names every owner's consents; ask the platform's compliance staff for it.",
            roles=sorted(str(role) for role in STAFF),
        )
    key = load_or_create_key(desk.home.checkpoint_key)
    files = make_pack(desk.session, desk.now_us, request.name, key, request.epoch)
    manifest = json.loads(files["manifest.json"])
    return EvidencePack.model_validate({**manifest, "files": files})


ROWS = (
    Operation(
        name="deployments.evidence",
        method="GET",
        path="/deployments/{name}/evidence",
        roles=STAFF,
        request=EvidenceQuery,
        response=EvidencePack,
        run=evidence,
        summary="Proves what a deployment consists of and who permitted it, in files to verify offline.",
        example={"name": "research-desk"},
    ),
)

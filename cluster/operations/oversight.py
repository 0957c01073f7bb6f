# SPDX-License-Identifier: Apache-2.0
"""Audit and status: the chain of acts, its verification, and how the marketplace is."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from shutil import rmtree
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cluster.errors import RoleRequired
from cluster.operations.scope import sees_everything, tenant_scope
from cluster.operations.table import ANYONE, STAFF, Answer, Nothing, Operation, Request
from model_core.packing.ids import new_id
from model_core.packing.keys import load_or_create_key
from policy.audit.bundle import write_bundle
from policy.audit.proofs import Consistency, RowProof, prove_consistency, prove_rows
from policy.records.audit import AuditRecord, AuditReport, Checkpoint
from policy.records.epochs import ServerRecord
from tenants.roles import Principal

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class AuditPageQuery(Request):
    """Which records of the chain."""

    after: int = Field(default=0, ge=0, lt=2**53, description="only records after this number")
    limit: int = Field(default=100, ge=1, le=1000)


class AuditPage(Answer):
    """Records, oldest first."""

    items: tuple[AuditRecord, ...]
    next: int | None = None


class VerifyRequest(Request):
    """Earlier checkpoints to hold against the chain."""

    checkpoints: tuple[Checkpoint, ...] = Field(
        default=(), max_length=100, description="documents of audit.checkpoint that you kept"
    )


class RowQuery(Request):
    """Which stored row."""

    table: str = Field(max_length=63, description="its table; audit for a record of the chain")
    key: str = Field(max_length=500, description="its primary key; several values as a JSON list")


class ConsistencyQuery(Request):
    """Which two checkpoints."""

    earlier: int = Field(ge=1, lt=2**53, description="seals that the earlier one counts")
    size: int | None = Field(
        default=None, ge=1, lt=2**53, description="seals that the later one counts; all with none"
    )


class Exported(Answer):
    """An audit bundle that was written at the office."""

    folder: str
    tables: dict[str, int]
    audit: int
    seals: int
    public_key: str


class Status(Answer):
    """How the marketplace is, as the caller may see it.

    Attributes:
        jobs: own (or all) jobs by state.
        servers: model hosts and the epochs that they run; for the platform's staff.
    """

    status: Literal["ok"]
    version: str
    epoch: int
    snapshot_digest: str
    jobs: dict[str, int]
    experts: dict[str, int]
    deployments: int
    servers: tuple[ServerRecord, ...]


def records(desk: Desk, principal: Principal, request: AuditPageQuery) -> AuditPage:
    """Links of the chain."""
    _check_whole_chain(principal)
    found = desk.audit.records(request.after, request.limit)
    return AuditPage(items=tuple(found), next=found[-1].seq if len(found) == request.limit else None)


def verify(desk: Desk, principal: Principal, request: VerifyRequest) -> AuditReport:
    """Checks the chain against itself and kept checkpoints; for staff also every stored row."""
    kept = request.checkpoints
    trusted = {load_or_create_key(desk.home.checkpoint_key).public_key} if kept else None
    return desk.audit.verify(kept, trusted, rows=sees_everything(principal))


def checkpoint(desk: Desk, principal: Principal, request: Nothing) -> Checkpoint:
    """Signs length and head of the chain."""
    del request
    _check_whole_chain(principal)
    return desk.audit.checkpoint(load_or_create_key(desk.home.checkpoint_key))


def proof(desk: Desk, principal: Principal, request: RowQuery) -> RowProof:
    """Proves one stored row."""
    _check_whole_chain(principal)
    return prove_rows(desk.session, [(request.table, request.key)])[0]


def consistency(desk: Desk, principal: Principal, request: ConsistencyQuery) -> Consistency:
    """Proves that nothing under an earlier checkpoint was changed."""
    _check_whole_chain(principal)
    return prove_consistency(desk.session, request.earlier, request.size)


def export(desk: Desk, principal: Principal, request: Nothing) -> Exported:
    """Writes everything that is needed to verify without the database."""
    del request
    _check_whole_chain(principal)
    point = desk.audit.checkpoint(load_or_create_key(desk.home.checkpoint_key))
    desk.home.make_folder(desk.home.audit_exports)
    for old in sorted(desk.home.audit_exports.iterdir())[:-_KEPT_EXPORTS]:
        rmtree(old)
    folder = desk.home.audit_exports / new_id("audit")
    manifest = write_bundle(desk.session, folder, point.note, point.public_key)
    return Exported.model_validate({**manifest, "folder": str(folder)})


def status(desk: Desk, principal: Principal, request: Nothing) -> Status:
    """How things are."""
    del request
    own = tenant_scope(principal)
    snapshot = desk.register.snapshot(None)
    deployments = [row for row in snapshot.deployments if own in {None, row.tenant}]
    return Status(
        status="ok",
        version=_version(),
        epoch=snapshot.epoch,
        snapshot_digest=snapshot.digest,
        jobs=dict(Counter(str(row.state) for row in desk.jobs.list(own))),
        experts=dict(Counter(str(row.state) for row in desk.register.experts(own))),
        deployments=len(deployments),
        servers=tuple(desk.register.servers()) if sees_everything(principal) else (),
    )


def _check_whole_chain(principal: Principal) -> None:
    if not sees_everything(principal):
        raise RoleRequired(
            "The chain speaks of every tenant; its verification (audit.verify) is open to you.",
            roles=["operator", "compliance", "auditor"],
        )


def _version() -> str:
    try:
        return version("expert-marketplace")
    except PackageNotFoundError:
        return "0"


_KEPT_EXPORTS = 2  # besides the new one

ROWS = (
    Operation(
        name="audit.records",
        method="GET",
        path="/audit/records",
        roles=STAFF,
        request=AuditPageQuery,
        response=AuditPage,
        run=records,
        summary="Lists the links of the audit chain.",
    ),
    Operation(
        name="audit.verify",
        method="POST",
        path="/audit/verify",
        roles=ANYONE,
        request=VerifyRequest,
        response=AuditReport,
        run=verify,
        summary="Checks the audit chain, for staff every stored row too, against checkpoints that you send.",
        reads=True,
    ),
    Operation(
        name="audit.checkpoint",
        method="POST",
        path="/audit/checkpoint",
        roles=STAFF,
        request=Nothing,
        response=Checkpoint,
        run=checkpoint,
        summary="Signs length and head of the audit chain; keep the answer outside.",
        reads=True,
    ),
    Operation(
        name="audit.proof",
        method="GET",
        path="/audit/proof/{table}/{key}",
        roles=STAFF,
        request=RowQuery,
        response=RowProof,
        run=proof,
        summary="Proves that a stored row, or a record of the chain, is under the signed root.",
        example={"table": "audit", "key": "1"},
    ),
    Operation(
        name="audit.consistency",
        method="GET",
        path="/audit/consistency/{earlier}",
        roles=STAFF,
        request=ConsistencyQuery,
        response=Consistency,
        run=consistency,
        summary="Proves that what an earlier checkpoint counts was not changed since.",
        example={"earlier": 1},
    ),
    Operation(
        name="audit.export",
        method="POST",
        path="/audit/export",
        roles=STAFF,
        request=Nothing,
        response=Exported,
        run=export,
        summary="Writes records, seals and rows to a folder at the office, to be verified without it.",
        reads=True,
    ),
    Operation(
        name="status.show",
        method="GET",
        path="/status",
        roles=ANYONE,
        request=Nothing,
        response=Status,
        run=status,
        summary="Says how the marketplace is.",
        isolated=True,
    ),
)

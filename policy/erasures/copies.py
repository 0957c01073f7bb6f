# SPDX-License-Identifier: Apache-2.0
"""Which copies of something there are, who received it, where its influence stays: from the register alone.

Everything that is known is listed, also what cannot be erased, with the reason: an honest record is worth
more than a short one. Nothing is opened or removed here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from policy.consents.reading import ConsentReader
from policy.erasures.records import Copy
from policy.facts.terms import ANY
from policy.tables import (
    DecisionRow,
    DecisionVerdictRow,
    ErasureRow,
    ExpertDatasetRow,
    ExpertRow,
    GrantRow,
    ServerRow,
    UsageRecordRow,
    UsageShareRow,
)
from tenants.accounts.tables import DatasetRow, JobRow

EXPORT_ACTION = "export_weights"
_SENT = "Answers that were sent before may repeat what it had learned; they cannot be called back."
_TUNED = (
    "A router that was tuned over a set with it is set aside when it leaves and made anew; an export of such "
    "a set keeps the old rows."
)
_PROXIES = (
    "Public documents that were chosen as proxies of its text may have tuned routers of others; they hold "
    "none of its text."
)


def copies_of(session: Session, erasure: ErasureRow) -> list[Copy]:
    """Every copy, recipient and remaining influence of what is to be erased."""
    if erasure.subject_kind == "expert":
        found = _of_expert(session, erasure.subject_id)
    elif erasure.subject_kind == "dataset":
        found = _of_dataset(session, erasure.subject_id)
    else:
        found = _of_record(session, erasure.subject_id)
    return [*found, Copy(kind="backup", place="database and artifacts")]


def _of_expert(session: Session, expert_id: str) -> Iterator[Copy]:
    row = session.get_one(ExpertRow, expert_id)
    yield Copy(kind="artifact", place=row.bundle_digest)
    if row.job_id is not None:
        yield Copy(kind="work_folder", place=row.job_id, facts={"tenant": row.tenant})
    for server_id in session.scalars(select(ServerRow.server_id).order_by(ServerRow.server_id)):
        yield Copy(kind="server", place=server_id)
    yield Copy(kind="packed_files", place=row.bundle_digest)
    yield from _recipients(session, row)
    yield _named(
        "tombstone",
        row.bundle_digest,
        kept="digests, the manifest with its counts, decisions, usage and audit",
        why="what was decided and paid has to stay provable; none of it holds weights or text",
    )
    datasets = select(ExpertDatasetRow.dataset_id).where(ExpertDatasetRow.expert_id == expert_id)
    yield from _influence(session, list(session.scalars(datasets)), expert_id)
    yield _named("residual", "tuned routers", statement=_TUNED)
    yield _named("residual", "proxies", statement=_PROXIES)
    yield _named("residual", "answers", statement=_SENT)


def _of_dataset(session: Session, dataset_id: str) -> Iterator[Copy]:
    row = session.get_one(DatasetRow, dataset_id)
    yield Copy(
        kind="documents",
        place=dataset_id,
        facts={"tenant": row.tenant, "digest": row.stored_digest},
    )
    jobs = select(JobRow.id).where(JobRow.dataset_id == dataset_id).order_by(JobRow.id)
    for job_id in session.scalars(jobs):
        yield Copy(kind="work_folder", place=job_id, facts={"tenant": row.tenant})
    yield _named(
        "tombstone",
        dataset_id,
        kept="the data card with its counts and the digest of the documents",
        why="licenses and lineage of experts rest on it; it holds no text",
    )
    yield from _influence(session, [dataset_id], None)


def _of_record(session: Session, record_id: str) -> Iterator[Copy]:
    file = ConsentReader(session, 0).file(record_id)
    refs = {event.evidence_ref for event in file.events}
    if file.paper is not None:
        refs |= {file.paper.subject_ref, file.paper.evidence_ref}
    for ref in sorted(ref for ref in refs if ref is not None):
        yield Copy(kind="vault", place=ref)
    yield _named(
        "tombstone",
        file.record_id,
        kept="salted hashes, whose salts are erased",
        why="chained records go on verifying, and nobody can tell whom they stood for",
    )


def _influence(session: Session, dataset_ids: list[str], but: str | None) -> Iterator[Copy]:
    """Experts that learned from the same data: erasing one does not change the others."""
    query = (
        select(ExpertRow.expert_id, ExpertRow.tenant, ExpertRow.name, ExpertRow.version, ExpertRow.state)
        .join(ExpertDatasetRow, ExpertDatasetRow.expert_id == ExpertRow.expert_id)
        .where(ExpertDatasetRow.dataset_id.in_(dataset_ids), ExpertRow.expert_id != (but or ""))
        .distinct()
        .order_by(ExpertRow.expert_id)
    )
    for expert_id, tenant, name, version, state in session.execute(query):
        yield _named(
            "residual",
            expert_id,
            expert=f"{tenant}/{name} v{version}",
            state=state,
            statement="It was trained on the same data and goes on unless it is withdrawn or erased itself.",
        )


def _recipients(session: Session, expert: ExpertRow) -> Iterator[Copy]:
    """Whom it served, who may have it as weights, and who was given access."""
    used = (
        select(UsageRecordRow.tenant)
        .join(
            UsageShareRow,
            (UsageShareRow.server_id == UsageRecordRow.server_id)
            & (UsageShareRow.sequence == UsageRecordRow.sequence)
            & (UsageShareRow.n == UsageRecordRow.n),
        )
        .where(UsageShareRow.bundle == expert.bundle_digest)
    )
    granted = select(GrantRow.consumer_tenant).where(
        GrantRow.expert_id == expert.expert_id, GrantRow.consumer_tenant != ANY
    )
    why: dict[str, set[str]] = {}
    for word, query in (("used", used), ("granted", granted)):
        for tenant in session.scalars(query.distinct()):
            why.setdefault(tenant, set()).add(word)
    exports = _exports(session, expert)
    for tenant in sorted(why.keys() | exports.keys()):
        words = sorted(why.get(tenant, set()) | ({"exported"} if tenant in exports else set()))
        yield Copy(kind="recipient", place=tenant, facts={"because": words})
    for tenant, decisions in sorted(exports.items()):
        yield Copy(
            kind="export",
            place=tenant,
            outcome="kept",
            facts={
                "decisions": decisions,
                "why": "exported weights cannot be called back; the recipient was asked to erase them",
            },
        )


def _exports(session: Session, expert: ExpertRow) -> dict[str, list[str]]:
    """Decisions by which weights left, by the tenant that took them."""
    query = (
        select(DecisionRow.id, DecisionRow.consumer_tenant, DecisionRow.question)
        .join(DecisionVerdictRow, DecisionVerdictRow.decision_id == DecisionRow.id)
        .where(
            DecisionVerdictRow.expert_id == expert.expert_id,
            DecisionVerdictRow.verdict == "permit",
            DecisionRow.question.contains(EXPORT_ACTION),
        )
        .order_by(DecisionRow.id)
    )
    found: dict[str, list[str]] = {}
    for decision_id, tenant, question in session.execute(query):
        if json.loads(question).get("action") == EXPORT_ACTION:
            found.setdefault(tenant, []).append(decision_id)
    return found


def _named(kind: str, place: str, **facts: Any) -> Copy:
    return Copy(kind=kind, place=place, outcome="named" if kind == "residual" else "kept", facts=facts)

# SPDX-License-Identifier: Apache-2.0
"""What the rooms of this floor hand out: frozen documents, never rows of a database."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model_core.packing.manifest import BaseManifest, ExpertManifest
from policy.composition import Composition
from policy.items import ChangeItem
from policy.snapshot import ConsentFact, DeploymentFact
from policy.terms import AtUs, Count, ExpertState

PUBLIC = "public"


class Record(BaseModel):
    """A frozen answer; fields are only ever added."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class BaseRecord(Record):
    """A registered base."""

    base_digest: str
    name: str
    license: str
    status: str
    manifest: BaseManifest
    added_at_us: int


class ExpertRecord(Record):
    """One version of an expert; ``license`` and price are those of its latest listing."""

    expert_id: str
    name: str
    tenant: str
    version: int
    bundle_digest: str
    base_digest: str
    state: ExpertState
    license: str
    price_micro_per_1k_tokens: int
    dataset_ids: tuple[str, ...]
    job_id: str | None
    admitted_at_us: int
    manifest: ExpertManifest


class Publication(Record):
    """One epoch: why it came, and the digest of what it froze."""

    epoch: int
    at_us: int
    snapshot_digest: str
    reason: str
    subject: str
    principal_id: str | None
    change_id: str | None


class Announcement(Record):
    """What is told of an epoch to whoever listens: that it came, why, and the digest of what it froze."""

    epoch: int
    snapshot_digest: str
    reason: str
    at_us: int


class ConsentEvent(Record):
    """Something that happened to a consent."""

    event: str
    at_us: int
    epoch: int
    principal_id: str


class ConsentRecord(ConsentFact):
    """A consent with its history.

    Attributes:
        record_id: its consent record; a renewed consent has the same one.
        status: where that record stands; only ``given`` and ``renewed`` are valid.
    """

    at_us: int
    events: tuple[ConsentEvent, ...]
    record_id: str = ""
    status: str = "unknown"


class DeploymentPreview(Record):
    """What a change does to one deployment, by expert id; ``reasons`` says why the others stay out."""

    deployment: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    reasons: dict[str, str]


class Preview(Record):
    """What a change would do if it were published now."""

    epoch_base: int
    deployments: tuple[DeploymentPreview, ...]


ChangeState = Literal[
    "draft", "proposed", "scheduled", "approved", "rejected", "withdrawn", "revised", "failed"
]


class ApprovalRecord(Record):
    """Who approved a change that is published later, and when."""

    principal_id: str
    name: str
    at_us: int


class ChangeRecord(Record):
    """A draft of edits and where it stands; ``digest`` is what an approval must name.

    ``proposed`` is under review, ``scheduled`` approved for a later moment, ``approved`` published. What is
    ``failed`` could not be published any more when its moment came, and ``comment`` says why.
    """

    id: str
    title: str
    tenant: str
    author_id: str
    author_name: str
    items: tuple[ChangeItem, ...]
    digest: str
    state: ChangeState
    created_at_us: int
    decided_by: str | None
    decided_at_us: int | None
    comment: str
    epoch: int | None
    preview: Preview | None = None
    effective_at_us: int | None = None
    approval: ApprovalRecord | None = None
    rolls_back: str | None = None
    revises: str | None = None
    version: int = 1


StopKind = Literal["expert", "tenant", "deployment", "license", "purpose"]


class StopRecord(Record):
    """An emergency stop. ``in_force`` says whether its subject is still out of use, whoever signed.

    ``fact_id`` names the fact that stops: a rule, a license's version, or the subject itself.
    """

    id: str
    kind: StopKind
    subject: str
    tenant: str | None
    fact_id: str
    reason: str
    principal_id: str
    principal_name: str
    at_us: int
    epoch: int
    second_signature_due_at_us: int
    signed_by: str | None
    signed_at_us: int | None
    state: Literal["awaits_signature", "overdue", "signed"]
    in_force: bool


class RollbackRecord(Record):
    """What undid a change: epochs that narrowed at once, and a change that somebody else approves."""

    rolls_back: str
    publications: tuple[Publication, ...]
    change: ChangeRecord | None


class EvaluationRecord(Record):
    """What leaving one expert out costs, as somebody measured it, with the digest of the evidence.

    ``value_micro`` is how much worse the metric gets without the expert, in millionths of its unit;
    ``deployment`` says where it was measured, ``*`` outside any.
    """

    id: str
    expert_id: str
    tenant: str
    deployment: str
    metric: str
    value_micro: int
    evidence_digest: str
    principal_id: str
    at_us: int


class DeploymentRecord(DeploymentFact):
    """A deployment with what it runs at this moment, and why; ``version`` counts its published forms."""

    composition: Composition
    version: int = 0


class AcknowledgementRecord(Record):
    """A server runs what an epoch permits."""

    server_id: str
    epoch: int
    snapshot_digest: str
    compositions: dict[str, str]
    at_us: int


class ServerRecord(Record):
    """A server and the highest epoch that it acknowledged."""

    server_id: str
    epoch: int
    first_at_us: int
    last_at_us: int


class VerdictRecord(Record):
    """What a logged decision says of one expert."""

    expert_id: str
    verdict: str
    outcome: str
    code: str


class DecisionRecord(Record):
    """One logged answer."""

    id: str
    epoch: int
    deployment: str
    consumer_tenant: str
    question: dict[str, Any]
    output_digest: str
    engine_version: str
    at_us: int
    verdicts: tuple[VerdictRecord, ...]
    composition: Composition


class ReplayResult(Record):
    """A logged answer beside the one that the same snapshot and question give now."""

    decision_id: str
    equal: bool
    before: str
    after: str


class UsageRecord(Record):
    """Metered tokens of one chunk of one request, as a server journaled them.

    ``experts`` maps bundle digests (and ``public``) to millionths of a token; they sum to the completion
    tokens.
    """

    request_id: str
    deployment: str
    epoch: Count
    composition_digest: str
    prompt_tokens: Count
    completion_tokens: Count
    experts: dict[str, int] = Field(default_factory=dict)
    at_us: AtUs
    final: bool = False


class Reservation(Record):
    """A budget hold: the request may cost at most ``held_micro``, whatever is published meanwhile."""

    request_id: str
    deployment: str
    tenant: str
    principal_id: str
    base_digest: str
    epoch: int
    composition_digest: str
    max_tokens: int
    price_ceiling_micro_per_1k: int
    held_micro: int
    created_at_us: int


class UsageRow(Record):
    """Tokens and money of one expert in one deployment."""

    tenant: str
    deployment: str
    bundle: str
    expert_id: str | None
    expert_name: str
    owner: str
    ppm_tokens: int
    amount_micro: int
    fee_micro: int


class UsageTotal(Record):
    """Tokens of one deployment."""

    tenant: str
    deployment: str
    prompt_tokens: int
    completion_tokens: int
    requests: int


class Statement(Record):
    """What a tenant owes and is owed by one settlement; ``document`` is canonical JSON text."""

    id: str
    settlement_id: str
    tenant: str
    at_us: int
    digest: str
    document: str
    charged_micro: int
    earned_micro: int
    net_micro: int


class Balance(Record):
    """The sum of an account; positive is owed to the tenant."""

    account_id: str
    tenant: str
    kind: str
    balance_micro: int


class EntryRecord(Record):
    """One amount on one account."""

    transaction_id: str
    n: int
    account_id: str
    amount_micro: int
    memo: str
    kind: str
    at_us: int


class BudgetRecord(Record):
    """What a tenant may spend, has spent and has on hold."""

    tenant: str
    limit_micro: int
    spent_micro: int
    held_micro: int


class AuditRecord(Record):
    """One link of the audit chain."""

    seq: int
    at_us: int
    actor: str
    action: str
    object: str
    facts: dict[str, Any]
    prev_hash: str
    leaf_hash: str


class AuditReport(Record):
    """What verifying a chain found.

    Attributes:
        ok: every link holds and every checkpoint given agrees.
        length: number of records read.
        first_bad: sequence number of the first record that does not hold.
        reason: what is wrong with it, a stable word.
        tail: ``proven`` up to the last checkpoint given, or ``not proven`` without one.
        head: leaf of the last record.
        bad: the first records that do not hold, each as ``table key``, in the order of the chain.
        sentence: what is wrong with the first of them, or that nothing is.
        rows: stored rows that were held against the seals.
        seals: seals that hold, from the first on.
        seals_root: root of the tree over them.
    """

    ok: bool
    length: int
    first_bad: int | None
    reason: str
    tail: Literal["proven", "not proven"]
    head: str
    bad: tuple[str, ...] = ()
    sentence: str = ""
    rows: int = 0
    seals: int = 0
    seals_root: str = ""


class Checkpoint(Record):
    """A signed statement that the chain had this length and head; kept outside the database.

    Attributes:
        length: records of the audit chain.
        head: leaf of its last record.
        at_us: when this was stated.
        key_id: short name of the key.
        public_key: whose signature it is.
        signature: over all of it.
        seals: seals over all stored rows, the chain's included.
        seals_root: root of the tree over them.
        note: the same as a signed note, the text that belongs into a file (C2SP ``tlog-checkpoint``).
    """

    length: int
    head: str
    at_us: int
    key_id: str
    public_key: str
    signature: str
    seals: int = 0
    seals_root: str = ""
    note: str = ""

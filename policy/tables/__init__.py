# SPDX-License-Identifier: Apache-2.0
"""Rows of the register, the metering, the ledger and the audit. Rows never leave the policy floor.

``APPEND_ONLY`` tables can not be updated or deleted from; ``LATCHED`` tables keep their facts and let only
the named state columns move. Both are enforced by triggers that the migrations create on either engine, so
that raw SQL is held to them as well. Importing this package declares every table.
"""

from __future__ import annotations

from policy.tables.assets import BaseRow, DeploymentRow, ExpertDatasetRow, ExpertRow, LicenseRow, ListingRow
from policy.tables.audit import AuditRow
from policy.tables.consents import ConsentFileEventRow, ConsentFileRow, NoticeRow, VaultRow
from policy.tables.decisions import DecisionRow, DecisionVerdictRow
from policy.tables.erasures import ErasureEventRow, ErasureRow, HoldEventRow, NotificationRow
from policy.tables.facts import PublishedFactRow, UnpublishedRow
from policy.tables.ledger import (
    LedgerAccountRow,
    LedgerEntryRow,
    LedgerTransactionRow,
    SettledBatchRow,
    SettlementRow,
    StatementRow,
)
from policy.tables.metering import BudgetRow, ReservationRow, UsageBatchRow, UsageRecordRow, UsageShareRow
from policy.tables.outbox import OutboxRow
from policy.tables.publication import AcknowledgementRow, ChangeRow, PublicationRow, ServerRow, SnapshotRow
from policy.tables.seals import SealDraftRow, SealRow
from policy.tables.words import ConsentEventRow, ConsentRow, GrantRow, RuleRow
from policy.tables.workflow import ApprovalRow, DraftRow, EvaluationRow, ImpactReportRow, StopRow

__all__ = [
    "APPEND_ONLY",
    "LATCHED",
    "AcknowledgementRow",
    "ApprovalRow",
    "AuditRow",
    "BaseRow",
    "BudgetRow",
    "ChangeRow",
    "ConsentEventRow",
    "ConsentFileEventRow",
    "ConsentFileRow",
    "ConsentRow",
    "DecisionRow",
    "DecisionVerdictRow",
    "DeploymentRow",
    "DraftRow",
    "ErasureEventRow",
    "ErasureRow",
    "EvaluationRow",
    "ExpertDatasetRow",
    "ExpertRow",
    "GrantRow",
    "HoldEventRow",
    "ImpactReportRow",
    "LedgerAccountRow",
    "LedgerEntryRow",
    "LedgerTransactionRow",
    "LicenseRow",
    "ListingRow",
    "NoticeRow",
    "NotificationRow",
    "OutboxRow",
    "PublicationRow",
    "PublishedFactRow",
    "ReservationRow",
    "RuleRow",
    "SealDraftRow",
    "SealRow",
    "ServerRow",
    "SettledBatchRow",
    "SettlementRow",
    "SnapshotRow",
    "StatementRow",
    "StopRow",
    "UnpublishedRow",
    "UsageBatchRow",
    "UsageRecordRow",
    "UsageShareRow",
    "VaultRow",
]

APPEND_ONLY = (
    "job_events",
    "bases",
    "expert_datasets",
    "publications",
    "snapshots",
    "listings",
    "licenses",
    "consent_events",
    "decisions",
    "decision_verdicts",
    "usage_batches",
    "usage_records",
    "usage_shares",
    "ledger_accounts",
    "ledger_transactions",
    "ledger_entries",
    "settlements",
    "settled_batches",
    "statements",
    "audit",
    "seals",
    "notices",
    "consent_records",
    "consent_record_events",
    "legal_holds",
    "erasure_events",
    "change_approvals",
    "expert_evaluations",
    "impact_reports",
)

LATCHED = {
    "experts": ("state",),
    "consents": ("state",),
    "grants": ("state",),
    "rules": ("state",),
    "published_facts": ("until_epoch",),
    "outbox": ("delivered_at_us",),
    "changes": ("state", "decided_by", "decided_at_us", "comment", "epoch", "stage"),
    "change_drafts": ("title", "items", "digest", "effective_at_us", "version", "state", "edited_at_us"),
    "stops": ("signed_by", "signed_at_us"),
    "erasures": ("state", "decided_by", "decided_at_us", "epoch", "completed_at_us", "record"),
    "notifications": ("acknowledged_by", "acknowledged_at_us"),
    "reservations": ("state", "used_tokens", "remainder", "held_micro", "closed_at_us"),
}

# SPDX-License-Identifier: Apache-2.0
"""Usage, holds, budgets, entries and statements, in integers."""

from __future__ import annotations

from pydantic import Field

from policy.facts.terms import AtUs, Count
from policy.records.record import Record


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

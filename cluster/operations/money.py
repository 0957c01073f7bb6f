# SPDX-License-Identifier: Apache-2.0
"""Usage and the ledger: tokens per expert, budgets, settlements, statements. Amounts are micro-credits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.operations.scope import cut, sees_everything, tenant_scope
from cluster.operations.table import ANYONE, Answer, Nothing, Operation, Page, Request
from policy.records.billing import Balance, BudgetRecord, EntryRecord, Statement, UsageRow, UsageTotal
from tenants.roles import Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk


# More than any one transaction has, so that a page always holds at least one whole transaction.
FEWEST_ENTRIES = 2000


class UsageQuery(Request):
    """Which usage; times are microseconds since the Unix epoch."""

    since_us: int = Field(default=0, ge=0, lt=2**53)
    until_us: int | None = Field(default=None, ge=0, lt=2**53)


class Usage(Answer):
    """Tokens and money per deployment and expert.

    Attributes:
        items: what one's tenant used.
        earned: what others used of one's experts; consumers are not named.
        totals: tokens per deployment.
    """

    items: tuple[UsageRow, ...]
    earned: tuple[UsageRow, ...]
    totals: tuple[UsageTotal, ...]


class Balances(Answer):
    """Accounts and their sums; over all accounts of the ledger they sum to zero."""

    items: tuple[Balance, ...]
    sum_micro: int


class EntryPage(Answer):
    """Entries, oldest first."""

    items: tuple[EntryRecord, ...]
    next: str | None = None


class StatementPage(Answer):
    """Statements, oldest first."""

    items: tuple[Statement, ...]
    next: str | None = None


class Settlement(Answer):
    """The statements of one settlement; none if nothing was left to settle."""

    items: tuple[Statement, ...]


class PutBudget(Request):
    """How much a tenant may spend in all."""

    tenant: str = Field(max_length=63)
    limit_micro: int = Field(ge=0, lt=2**53, description="1 credit = 1 000 000")


class Budgets(Answer):
    """Budgets by tenant."""

    items: tuple[BudgetRecord, ...]


def usage(desk: Desk, principal: Principal, request: UsageQuery) -> Usage:
    """What was used and earned."""
    since_us, until_us = request.since_us, request.until_us
    own = tenant_scope(principal)
    used = desk.metering.usage(own, since_us, until_us)
    totals = desk.metering.totals(own, since_us, until_us)
    earned = () if own is None else _earned(desk.metering.usage(None, since_us, until_us, owner=own), own)
    return Usage(items=tuple(used), earned=earned, totals=tuple(totals))


def _earned(rows: list[UsageRow], owner: str) -> tuple[UsageRow, ...]:
    """Others' use of an owner's experts, summed per expert: who asked and where is their own affair."""
    sums: dict[str, UsageRow] = {}
    for row in rows:
        if row.tenant == owner:
            continue
        known = sums.get(row.bundle)
        before = (known.ppm_tokens, known.amount_micro, known.fee_micro) if known else (0, 0, 0)
        sums[row.bundle] = row.model_copy(
            update={
                "tenant": "*",
                "deployment": "*",
                "ppm_tokens": before[0] + row.ppm_tokens,
                "amount_micro": before[1] + row.amount_micro,
                "fee_micro": before[2] + row.fee_micro,
            }
        )
    return tuple(sums[bundle] for bundle in sorted(sums))


def balances(desk: Desk, principal: Principal, request: Nothing) -> Balances:
    """Sums of accounts."""
    del request
    shown = tuple(desk.ledger.balances(tenant_scope(principal)))
    return Balances(items=shown, sum_micro=sum(row.balance_micro for row in shown))


def entries(desk: Desk, principal: Principal, request: Page) -> EntryPage:
    """Single amounts."""
    mine = {row.account_id for row in desk.ledger.balances(tenant_scope(principal))}
    room = max(request.limit, FEWEST_ENTRIES)
    rows = desk.ledger.entries(after=request.after or "", limit=room)
    more = len(rows) == room
    if more:
        # The last transaction may have been cut in the middle; it comes whole with the next page.
        last = rows[-1].transaction_id
        rows = [row for row in rows if row.transaction_id != last]
    shown = tuple(row for row in rows if row.account_id in mine)
    return EntryPage(items=shown, next=rows[-1].transaction_id if more else None)


def settle(desk: Desk, principal: Principal, request: Nothing) -> Settlement:
    """Settles what was metered and is not settled yet."""
    del request
    return Settlement(items=tuple(desk.ledger.settle(principal)))


def statements(desk: Desk, principal: Principal, request: Page) -> StatementPage:
    """What tenants owe and are owed."""
    items, after = cut(desk.ledger.statements(tenant_scope(principal)), request, lambda row: row.id)
    return StatementPage(items=items, next=after)


def put_budget(desk: Desk, principal: Principal, request: PutBudget) -> BudgetRecord:
    """Sets what a tenant may spend."""
    del principal
    return desk.ledger.set_budget(request.tenant, request.limit_micro)


def budgets(desk: Desk, principal: Principal, request: Nothing) -> Budgets:
    """What may be spent, is spent and is held."""
    del request
    if sees_everything(principal):
        slugs = [row.slug for row in desk.accounts.list_tenants()]
    else:
        slugs = [principal.tenant]
    return Budgets(items=tuple(desk.ledger.budget(slug) for slug in slugs))


_MONEY = frozenset({Role.OWNER, Role.DEVELOPER, Role.AUDITOR, Role.OPERATOR, Role.COMPLIANCE})

ROWS = (
    Operation(
        name="usage.show",
        method="GET",
        path="/usage",
        roles=ANYONE,
        request=UsageQuery,
        response=Usage,
        run=usage,
        summary="Shows tokens and money per deployment and expert.",
    ),
    Operation(
        name="ledger.balances",
        method="GET",
        path="/ledger/balances",
        roles=_MONEY,
        request=Nothing,
        response=Balances,
        run=balances,
        summary="Shows your accounts; over the whole ledger they sum to zero.",
        isolated=True,
    ),
    Operation(
        name="ledger.entries",
        method="GET",
        path="/ledger/entries",
        roles=_MONEY,
        request=Page,
        response=EntryPage,
        run=entries,
        summary="Lists the amounts on your accounts.",
        isolated=True,
    ),
    Operation(
        name="ledger.settle",
        method="POST",
        path="/ledger/settle",
        roles=frozenset({Role.OPERATOR}),
        request=Nothing,
        response=Settlement,
        run=settle,
        summary="Settles everything that was metered and is not settled yet.",
    ),
    Operation(
        name="ledger.statements",
        method="GET",
        path="/ledger/statements",
        roles=_MONEY,
        request=Page,
        response=StatementPage,
        run=statements,
        summary="Lists your statements.",
        isolated=True,
    ),
    Operation(
        name="ledger.budget",
        method="PUT",
        path="/ledger/budgets/{tenant}",
        roles=frozenset({Role.OPERATOR}),
        request=PutBudget,
        response=BudgetRecord,
        run=put_budget,
        summary="Sets how much a tenant may spend in all.",
        example={"tenant": "acme-apps", "limit_micro": 50_000_000},
    ),
    Operation(
        name="ledger.budgets",
        method="GET",
        path="/ledger/budgets",
        roles=_MONEY,
        request=Nothing,
        response=Budgets,
        run=budgets,
        summary="Shows what may be spent, is spent and is on hold.",
        isolated=True,
    ),
)

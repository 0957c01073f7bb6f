# SPDX-License-Identifier: Apache-2.0
"""The ledger: prices without loss, books that balance by force, statements that replay byte for byte."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from town import Town, usage

from policy.billing import ledger
from policy.errors import InvalidUsage, NotFound, Unbalanced
from policy.records.record import PUBLIC
from tenants.accounts.database import Database
from tenants.errors import UnknownObject

MILLION = 1_000_000
SHARES = st.lists(
    st.builds(
        ledger.Share,
        bundle=st.sampled_from([f"sha256:{n}" for n in range(6)]),
        owner=st.sampled_from(["acme", "beta"]),
        ppm_tokens=st.integers(0, 50 * MILLION),
        price_micro_per_1k_tokens=st.integers(0, 10**9),
    ),
    max_size=6,
    unique_by=lambda share: share.bundle,
)


@given(total=st.integers(0, 10**18), weights=st.lists(st.integers(0, 10**15), min_size=1, max_size=20))
def test_allocation_loses_nothing(total: int, weights: list[int]) -> None:
    """Parts sum to the whole and each is its exact share rounded down or up."""
    if not any(weights):
        total = 0
    parts = ledger.allocate(total, weights)
    assert sum(parts) == total
    whole = sum(weights) or 1
    assert all(0 <= part - total * weight // whole <= 1 for part, weight in zip(parts, weights, strict=True))


def test_allocation_refuses_nonsense() -> None:
    """Negative amounts or weights, and an amount without carriers, are errors."""
    for total, weights in ((-1, [1]), (1, [-1, 2]), (1, [0, 0]), (1, [])):
        with pytest.raises(InvalidUsage):
            ledger.allocate(total, weights)


@given(shares=SHARES, remainder=st.integers(0, ledger.UNIT - 1), order=st.randoms())
def test_price_is_exact_and_orderless(shares: list[ledger.Share], remainder: int, order: object) -> None:
    """Charges plus remainder equal the exact cost, fees stay below amounts, order does not matter."""
    charges, left = ledger.price(shares, remainder)
    exact = remainder + sum(share.ppm_tokens * share.price_micro_per_1k_tokens for share in shares)
    assert sum(charge.amount_micro for charge in charges) * ledger.UNIT + left == exact
    assert 0 <= left < ledger.UNIT
    assert all(0 <= charge.fee_micro <= charge.amount_micro for charge in charges)
    shuffled = list(shares)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert ledger.price(shuffled, remainder) == (charges, left)


@given(chunks=st.lists(st.integers(0, 3 * MILLION), max_size=20), price=st.integers(0, 10**7))
def test_chunking_changes_no_price(chunks: list[int], price: int) -> None:
    """A request in many chunks costs what it costs in one, and never more than its hold."""

    def cost(parts: list[int]) -> int:
        total = remainder = 0
        for ppm in parts:
            share = ledger.Share(bundle="x", owner="acme", ppm_tokens=ppm, price_micro_per_1k_tokens=price)
            charges, remainder = ledger.price([share], remainder)
            total += sum(charge.amount_micro for charge in charges)
        return total

    assert cost(chunks) == cost([sum(chunks)])
    assert cost(chunks) <= ledger.hold_micro(-(-sum(chunks) // MILLION), price)


@given(shares=SHARES)
def test_entries_sum_to_zero(shares: list[ledger.Share]) -> None:
    """Whatever is charged, consumer, owners and platform balance, also when an owner consumes its own."""
    charges, _ = ledger.price(shares, 0)
    for consumer in ("shop", "acme", "platform"):
        found = ledger.entries([(consumer, charge) for charge in charges], "platform")
        assert sum(entry.amount_micro for entry in found) == 0
    with pytest.raises(Unbalanced):
        ledger.check_balanced([ledger.Entry(account_id="a", tenant="a", kind="owner", amount_micro=1)])


class Market:
    """A town with metered usage of two owners' experts over two requests."""

    def __init__(self, database: Database) -> None:
        self.town = town = Town(database)
        self.one, self.two = town.expert("acme", "one"), town.expert("beta", "two")
        town.open_all(self.one, self.two, price=12_345)
        town.budget("shop", 100 * MILLION)
        self.use("host-1", 1)

    def use(self, server: str, sequence: int) -> None:
        """Meters a request that both experts and the public one answer."""
        held = self.town.reserve(100)
        parts = {
            self.one.bundle_digest: 7 * MILLION + 333_333,
            self.two.bundle_digest: 2 * MILLION + 666_667,
            PUBLIC: 5 * MILLION,
        }
        with self.town.metering() as metering:
            metering.record(server, sequence, [usage(held, parts, 15, final=True)])


@pytest.fixture
def market(database: Database) -> Market:
    """A market on either engine."""
    return Market(database)


def test_settling_is_idempotent_and_complete(market: Market) -> None:
    """A settlement covers everything unsettled once; the next one only what came since."""
    with market.town.ledger() as books:
        first = books.settle(market.town.olga)
        assert [one.tenant for one in first] == ["acme", "beta", "platform", "shop"]
        assert books.settle(market.town.olga) == []
    market.use("host-1", 2)
    market.use("host-2", 1)
    with market.town.ledger() as books:
        second = books.settle(market.town.olga)
        assert books.settle(market.town.olga) == []
        shop = json.loads(second[-1].document)
        assert shop["usage"] == [
            {"completion_tokens": 30, "deployment": "shop-ask", "prompt_tokens": 6, "requests": 2}
        ]
        balances = {one.account_id: one.balance_micro for one in books.balances()}
        assert sum(balances.values()) == 0
        statements = books.statements()
        assert sum(one.net_micro for one in statements) == 0
        charged = sum(one.charged_micro for one in books.statements("shop"))
        assert charged == -balances["consumer:shop"] == books.budget("shop").spent_micro
        assert charged == 3 * (10 * 12_345 // 1_000)
        earned = sum(one.earned_micro for one in books.statements("acme"))
        assert earned == balances["owner:acme"]
        assert [one.id for one in statements] == [one.id for one in first + second]


def test_statements_replay_to_the_same_bytes(market: Market) -> None:
    """Written anew from metered usage, also after later usage, a statement has the same bytes."""
    with market.town.ledger() as books:
        books.settle(market.town.olga)
    market.use("host-1", 2)
    with market.town.ledger() as books:
        books.settle(market.town.olga)
        for one in books.statements():
            assert books.replay(one.id) == one.document.encode()
        with pytest.raises(NotFound):
            books.replay("stm_x")


def test_a_tampered_statement_does_not_replay(market: Market) -> None:
    """A statement that somebody edited behind the guards differs from its replay."""
    with market.town.ledger() as books:
        [*_, shop] = books.settle(market.town.olga)
    with market.town.database.engine.begin() as connection:
        if market.town.database.is_sqlite:
            connection.execute(text("DROP TRIGGER guard_statements_update"))
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE statements SET document = replace(document, '12', '11')"))
    with market.town.ledger() as books:
        changed = books.statement(shop.id)
        assert books.replay(shop.id) != changed.document.encode()


ENTRY = "INSERT INTO ledger_entries VALUES ('{}', {}, 'consumer:shop', {}, '')"
CLOSE = "INSERT INTO ledger_transactions VALUES ('{}', '{}', 'raw', 1)"


@pytest.mark.parametrize(
    "statements",
    [
        [ENTRY.format("t", 0, 5), CLOSE.format("t", "k")],
        [ENTRY.format("t", 0, 5), ENTRY.format("t", 1, -4), CLOSE.format("t", "k")],
        [CLOSE.format("t", "k")],
        [ENTRY.format("t", 0, 5), ENTRY.format("t", 1, -5)],
        [ENTRY.format("t", 0, 0)],
        [CLOSE.format("t", "k"), ENTRY.format("t", 0, 5), ENTRY.format("t", 1, -5)],
        [ENTRY.format("{known}", 9, 5)],
        [ENTRY.format("{known}", 8, 5), ENTRY.format("{known}", 9, -5)],
        [ENTRY.format("t", 0, 5), ENTRY.format("t", 1, -5), CLOSE.format("t", "usage:host-1:1")],
    ],
)
def test_unbalanced_books_are_refused_by_the_database(market: Market, statements: list[str]) -> None:
    """Raw SQL can commit neither unbalanced, unclosed, empty, reopened nor repeated transactions."""
    with market.town.ledger() as books:
        known = books.entries()[0].transaction_id
        before = books.entries()

    def attempt() -> None:
        with market.town.database.unit_of_work() as session:
            for statement in statements:
                session.execute(text(statement.replace("{known}", known)))

    with pytest.raises(DBAPIError):
        attempt()
    with market.town.ledger() as books:
        assert books.entries() == before


def test_balanced_books_are_taken_by_raw_sql(market: Market) -> None:
    """The guards refuse what is wrong and nothing else."""
    with market.town.database.unit_of_work() as session:
        for statement in (ENTRY.format("t", 0, 5), ENTRY.format("t", 1, -5), CLOSE.format("t", "k")):
            session.execute(text(statement))


def test_two_writers_can_not_unbalance_a_transaction(market: Market) -> None:
    """On PostgreSQL a second session that slips entries into an open transaction fails at its commit."""
    if market.town.database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    engine = market.town.database.engine
    with engine.connect() as first, engine.connect() as second:
        for one in (first, second):
            one.execute(text("SELECT set_config('marketplace.tenant', '*', true)"))
        for statement in (ENTRY.format("t", 0, 5), ENTRY.format("t", 1, -5), CLOSE.format("t", "k")):
            first.execute(text(statement))
        second.execute(text(ENTRY.format("t", 2, 7)))
        first.commit()
        with pytest.raises(DBAPIError, match="do not sum to zero"):
            second.commit()


def test_budgets_are_checked(market: Market) -> None:
    """A budget belongs to a tenant that exists and is never negative; lowering it stops new requests."""
    with market.town.ledger() as books:
        with pytest.raises(InvalidUsage):
            books.set_budget("shop", -1)
        with pytest.raises(UnknownObject):
            books.set_budget("nobody", 1)
        lowered = books.set_budget("shop", 1)
        assert lowered.spent_micro > lowered.limit_micro == 1
        assert books.budget("club").limit_micro == 0
        assert len(books.entries("owner:acme")) == 1

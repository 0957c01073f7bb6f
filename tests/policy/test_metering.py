# SPDX-License-Identifier: Apache-2.0
"""Law 13: usage counts exactly once, budgets are held and never overspent, money sums to zero."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from town import Town, deployment, usage

from policy.errors import (
    BudgetExceeded,
    InvalidUsage,
    OverReservation,
    PayloadMismatch,
    SequenceGap,
    UnknownDeployment,
    UnknownReservation,
)
from policy.records.assets import ExpertRecord
from policy.records.billing import BudgetRecord, UsageRecord
from policy.records.items import ListingPut
from policy.records.record import PUBLIC
from tenants.accounts.database import Database

MILLION = 1_000_000


class Shop:
    """A town whose shop asks two experts of two owners at 3 and 7 micro-credits per token."""

    def __init__(self, database: Database) -> None:
        self.town = Town(database)
        self.one, self.two = self.town.expert("acme", "one"), self.town.expert("beta", "two")
        self.town.open_all(self.one, self.two, price=3_000)
        self.town.widen(self.town.bob, self.town.carl, listing(self.two, 7_000))
        self.town.budget("shop", 10 * MILLION)

    def budget(self) -> BudgetRecord:
        """The shop's budget as it stands."""
        with self.town.ledger() as ledger:
            return ledger.budget("shop")

    def record(self, server_id: str, sequence: int, *records: UsageRecord) -> int:
        """Uploads a batch."""
        with self.town.metering() as metering:
            return metering.record(server_id, sequence, records)

    def state(self) -> list[object]:
        """Everything that metering and booking could change."""
        with self.town.database.reading() as session:
            tables = (
                "reservations",
                "usage_batches",
                "usage_records",
                "usage_shares",
                "ledger_entries",
                "budgets",
            )
            return [sorted(map(str, session.execute(text(f"SELECT * FROM {name}")))) for name in tables]


def listing(expert: ExpertRecord, price: int) -> ListingPut:
    """A listing at a price."""
    return ListingPut(expert_id=expert.expert_id, price_micro_per_1k_tokens=price, license="MIT")


@pytest.fixture
def shop(database: Database) -> Shop:
    """A shop on either engine."""
    return Shop(database)


def test_a_request_is_held_then_charged(shop: Shop) -> None:
    """The hold covers the dearest expert; what is used is charged exactly, the rest is freed at the end."""
    held = shop.town.reserve(100)
    assert (held.price_ceiling_micro_per_1k, held.held_micro) == (7_000, 700)
    assert shop.budget().held_micro == 700
    mixed = {shop.one.bundle_digest: 4 * MILLION, shop.two.bundle_digest: 5 * MILLION, PUBLIC: MILLION}
    assert shop.record("host", 1, usage(held, mixed, 10)) == 1
    spent = 4 * 3 + 5 * 7
    assert (shop.budget().spent_micro, shop.budget().held_micro) == (spent, 630)
    shop.record("host", 2, usage(held, {PUBLIC: 5 * MILLION}, 5, final=True))
    assert (shop.budget().spent_micro, shop.budget().held_micro) == (spent, 0)
    with shop.town.metering() as metering:
        rows = {row.bundle: (row.ppm_tokens, row.amount_micro) for row in metering.usage("shop")}
        [total] = metering.totals("shop")
    assert rows == {
        shop.one.bundle_digest: (4 * MILLION, 12),
        shop.two.bundle_digest: (5 * MILLION, 35),
        PUBLIC: (6 * MILLION, 0),
    }
    assert (total.prompt_tokens, total.completion_tokens, total.requests) == (6, 15, 1)


def test_the_budget_is_a_wall(shop: Shop) -> None:
    """Holds count against the limit; free deployments need no budget; a tenant without one gets nothing."""
    shop.town.budget("shop", 1_000)
    first = shop.town.reserve(100)
    with pytest.raises(BudgetExceeded) as refused:
        shop.town.reserve(43)
    assert refused.value.facts["available_micro"] == 300
    shop.town.reserve(42)
    with shop.town.metering() as metering:
        metering.release(first.request_id)
        metering.release(first.request_id)
    shop.town.reserve(100)
    shop.town.widen(shop.town.clara, shop.town.carl, deployment(shop.town.base, "club-ask", "club"))
    with shop.town.metering() as metering:
        free = metering.reserve(shop.town.clara, "club-ask", 100)
        assert free.held_micro == 0


def test_what_goes_on_is_named_after_what_it_continues(shop: Shop) -> None:
    """Every further request behind an answer carries its first one's name; nobody goes on with another's."""
    first = shop.town.reserve().request_id
    with shop.town.metering() as metering:
        further = [
            metering.reserve(shop.town.dora, "shop-ask", 10, continues=first).request_id for _ in range(2)
        ]
        assert further == [f"{first}.2", f"{first}.3"]
        with pytest.raises(UnknownReservation):
            metering.reserve(shop.town.dora, "shop-ask", 10, continues="req_nothing")
    shop.town.widen(shop.town.clara, shop.town.carl, deployment(shop.town.base, "club-ask", "club"))
    with shop.town.metering() as metering, pytest.raises(UnknownReservation):
        metering.reserve(shop.town.clara, "club-ask", 10, continues=first)


def test_other_tenants_deployments_do_not_exist(shop: Shop) -> None:
    """Asking somebody else's endpoint is answered like asking none; no tokens is no request."""
    with shop.town.metering() as metering:
        for name in ("shop-ask", "nothing"):
            with pytest.raises(UnknownDeployment):
                metering.reserve(shop.town.clara, name, 10)
        with pytest.raises(InvalidUsage):
            metering.reserve(shop.town.dora, "shop-ask", 0)


def test_concurrent_requests_never_overspend(shop: Shop) -> None:
    """Of sixteen requests at once exactly those that the budget covers are admitted."""
    shop.town.budget("shop", 7 * 100 * 5)
    admitted, refused = [], []

    def ask() -> None:
        try:
            admitted.append(shop.town.reserve(100))
        except BudgetExceeded as error:
            refused.append(error)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(admitted), len(refused)) == (5, 11)
    assert shop.budget().held_micro == shop.budget().limit_micro


def test_resends_are_recognised_and_forgeries_refused(shop: Shop) -> None:
    """The same batch again changes nothing, other content under its number is refused, gaps are named."""
    held = shop.town.reserve()
    batch = usage(held, {shop.one.bundle_digest: 2 * MILLION}, 2)
    shop.record("host", 1, batch)
    before = shop.state()
    assert shop.record("host", 1, batch) == 1
    forged = usage(held, {shop.one.bundle_digest: 3 * MILLION}, 3)
    wrong: list[tuple[type[Exception], Callable[[], int]]] = [
        (PayloadMismatch, lambda: shop.record("host", 1, forged)),
        (PayloadMismatch, lambda: shop.record("host", 1)),
        (SequenceGap, lambda: shop.record("host", 3, batch)),
        (SequenceGap, lambda: shop.record("host", 0, batch)),
        (SequenceGap, lambda: shop.record("other", 2, batch)),
        (UnknownReservation, lambda: shop.record("host", 2, batch, usage(held, {}, 0, request_id="req_x"))),
        (OverReservation, lambda: shop.record("host", 2, usage(held, {PUBLIC: 99 * MILLION}, 99))),
        (InvalidUsage, lambda: shop.record("host", 2, usage(held, {PUBLIC: MILLION}, 2))),
        (InvalidUsage, lambda: shop.record("host", 2, usage(held, {PUBLIC: 3 * MILLION, "x": -MILLION}, 2))),
        (InvalidUsage, lambda: shop.record("host", 2, usage(held, {"sha256:x": MILLION}, 1))),
        (InvalidUsage, lambda: shop.record("host", 2, usage(held, {}, 0, deployment="x"))),
        (InvalidUsage, lambda: shop.record("host", 2, usage(held, {}, 0, epoch=held.epoch - 1))),
        (InvalidUsage, lambda: shop.record("host", 2, usage(held, {}, 0, epoch=held.epoch + 1))),
    ]
    for error, act in wrong:
        with pytest.raises(error):
            act()
        assert shop.state() == before
    with shop.town.metering() as metering:
        assert metering.accepted("host") == 1
        assert metering.accepted("other") == 0


def test_a_price_rise_does_not_reach_admitted_requests(shop: Shop) -> None:
    """A request costs at most what its admission held, also when a listing doubles meanwhile."""
    held = shop.town.reserve(10)
    publication = shop.town.widen(shop.town.bob, shop.town.carl, listing(shop.two, 14_000))
    late = usage(held, {shop.two.bundle_digest: 10 * MILLION}, 10, epoch=publication.epoch, final=True)
    shop.record("host", 1, late)
    assert shop.budget().spent_micro == 70
    assert shop.town.reserve(10).held_micro == 140


def test_expired_holds_are_freed_and_late_usage_still_counts(shop: Shop) -> None:
    """A hold without news is freed; what its server uploads afterwards is booked all the same."""
    held = shop.town.reserve(10)
    with shop.town.metering() as metering:
        assert metering.release_expired(held.created_at_us) == []
        assert metering.release_expired(held.created_at_us + 1) == [held.request_id]
    assert shop.budget().held_micro == 0
    shop.record("host", 1, usage(held, {shop.one.bundle_digest: 10 * MILLION}, 10, final=True))
    assert (shop.budget().spent_micro, shop.budget().held_micro) == (30, 0)


def test_usage_of_one_owner_and_one_day(shop: Shop) -> None:
    """Rows filter by owner and by time, the end excluded."""
    held = shop.town.reserve()
    shop.record("host", 1, usage(held, {shop.one.bundle_digest: MILLION, shop.two.bundle_digest: MILLION}, 2))
    at_us = held.created_at_us + 10
    with shop.town.metering() as metering:
        assert [row.owner for row in metering.usage(owner="beta")] == ["beta"]
        assert len(metering.usage(since_us=at_us, until_us=at_us + 1)) == 2
        assert metering.usage(until_us=at_us) == []
        assert metering.totals("club") == []


CHUNKS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 999_999)),
    min_size=1,
    max_size=6,
)
COUNT = iter(range(10**9))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=CHUNKS, resends=st.lists(st.integers(0, 5), max_size=10), data=st.data())
def test_any_delivery_counts_exactly_once(
    shop: Shop, chunks: list[tuple[int, int, int, int]], resends: list[int], data: st.DataObject
) -> None:
    """Duplicates, reordering and resends in any mixture give the totals of a single clean delivery."""
    server = f"host-{next(COUNT)}"
    before = shop.budget()
    held = shop.town.reserve(100)
    batches = []
    for public, one, two, shift in chunks:
        whole = public + one + two
        cut = min(shift, one * MILLION)  # parts of tokens, as routers give them
        parts = {
            PUBLIC: public * MILLION + cut,
            shop.one.bundle_digest: one * MILLION - cut,
            shop.two.bundle_digest: two * MILLION,
        }
        batches.append(usage(held, parts, whole))
    delivery = data.draw(st.permutations([*range(len(batches)), *(n % len(batches) for n in resends)]))
    accepted = 0
    while accepted < len(batches):  # a host repeats until everything is acknowledged
        for number in delivery:
            try:
                accepted = shop.record(server, number + 1, batches[number])
            except SequenceGap:
                assert number > accepted
    with shop.town.metering() as metering:
        metering.release(held.request_id)
    exact = sum(
        one.experts[shop.one.bundle_digest] * 3_000 + one.experts[shop.two.bundle_digest] * 7_000
        for one in batches
    )
    after = shop.budget()
    assert after.spent_micro - before.spent_micro == exact // 10**9
    assert after.held_micro == before.held_micro
    with shop.town.ledger() as ledger:
        balances = {one.account_id: one.balance_micro for one in ledger.balances()}
    assert sum(balances.values()) == 0
    assert -balances.get("consumer:shop", 0) == after.spent_micro
    with shop.town.database.reading() as session:
        counted = session.execute(
            text("SELECT count(*), sum(completion_tokens) FROM usage_records WHERE server_id = :server"),
            {"server": server},
        ).one()
    assert tuple(map(int, counted)) == (len(batches), sum(one.completion_tokens for one in batches))


def test_batches_of_a_server_have_no_gap_by_raw_sql(shop: Shop) -> None:
    """The database itself refuses a batch out of turn."""
    with pytest.raises(DBAPIError, match="no gaps"), shop.town.database.unit_of_work() as session:
        session.execute(text("INSERT INTO usage_batches VALUES ('host', 2, 'x', 1)"))

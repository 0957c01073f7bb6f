# SPDX-License-Identifier: Apache-2.0
"""Which open requests must end: those without a key, a tenant or money, and no others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from town import Town, usage

from policy.billing.stopped import Stopped, uncovered
from policy.records.items import TenantResume
from policy.records.record import PUBLIC
from tenants.accounts.accounts import Accounts
from tenants.accounts.database import Database
from tenants.roles import Role


def stopped(town: Town, *, later_us: int = 0) -> dict[str, str]:
    """What hosts are told."""
    with town.database.reading() as session:
        return dict(Stopped(session, town.now + later_us).requests())


def test_only_open_requests_of_the_revoked_key_end(database: Database) -> None:
    """Another key of the same person goes on, and a request that has ended is not named any more."""
    town = Town(database)
    town.open_all(town.expert(), price=1_000)
    town.budget("shop", 10_000_000)
    first, second = town.reserve(10), town.reserve(10)
    with town.metering() as metering:
        metering.record("host", 1, [usage(second, {PUBLIC: 0}, 0, final=True)])
    assert stopped(town) == {}
    with town.database.unit_of_work() as session:
        other = Accounts(session, town.now).create_key("shop", "dora", {Role.DEVELOPER}, town.now + 5_000_000)
        Accounts(session, town.now).revoke_key(town.dora.key_id)
    with town.metering() as metering:
        third = metering.reserve(other.principal, "shop-ask", 10)
    assert stopped(town) == {first.request_id: "key_revoked"}
    late = {first.request_id: "key_revoked", third.request_id: "key_expired"}
    assert stopped(town, later_us=5_000_000) == late


def test_a_lowered_budget_ends_the_newest_requests_until_the_rest_is_covered(database: Database) -> None:
    """What is on hold beyond the limit is given up, newest first; a free request needs no budget."""
    town = Town(database)
    town.open_all(town.expert(), price=1_000)
    town.budget("shop", 10_000_000)
    held = [town.reserve(100) for _ in range(3)]
    assert {one.held_micro for one in held} == {100}
    assert stopped(town) == {}
    town.budget("shop", 199)
    assert stopped(town) == {one.request_id: "budget_spent" for one in held[1:]}
    town.budget("shop", 300)
    assert stopped(town) == {}


def test_a_suspended_tenants_requests_end_until_it_is_resumed(database: Database) -> None:
    """The cause stands as long as the tenant does not."""
    town = Town(database)
    town.open_all(town.expert(), price=1_000)
    town.budget("shop", 10_000_000)
    one = town.reserve(10)
    town.act(lambda register: register.suspend_tenant("shop", town.olga))
    assert stopped(town) == {one.request_id: "tenant_suspended"}
    town.widen(town.carl, town.olga, TenantResume(slug="shop"))
    assert stopped(town) == {}


@given(st.lists(st.integers(1, 50), max_size=8), st.integers(-10, 300))
def test_as_few_requests_end_as_the_order_allows(holds: list[int], too_much: int) -> None:
    """The ended ones cover what is too much, if all together do, and without the last they would not."""
    named = [(str(number), micro) for number, micro in enumerate(holds)]
    ends = uncovered(named, too_much)
    assert ends == [name for name, _ in named[: len(ends)]]
    freed = sum(holds[: len(ends)])
    assert freed >= min(too_much, sum(holds))
    assert not ends or freed - holds[len(ends) - 1] < too_much

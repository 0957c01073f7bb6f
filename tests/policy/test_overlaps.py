# SPDX-License-Identifier: Apache-2.0
"""No permission says what another one says at the same time, on either engine and whoever writes."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.exc import DBAPIError
from town import PURPOSE, REGION, Town, consent, deployment

from policy.errors import Overlaps, StaleVersion
from policy.records.items import ForbidUse, GrantGive
from policy.tables import ConsentRow, GrantRow

WRITERS = 16
COLUMNS = [column.name for column in ConsentRow.__table__.columns]


def word(town: Town, number: int, **changes: Any) -> ConsentRow:
    """A consent of acme's to everything, as a row."""
    fields = {
        "id": f"con_{number}",
        "tenant": "acme",
        "expert_id": "*",
        "dataset_id": None,
        "effect": "permit",
        "action": "infer",
        "purpose": PURPOSE,
        "region": REGION,
        "recipient": "*",
        "commercial": 0,
        "valid_from_us": town.now,
        "valid_until_us": None,
        "state": "given",
        "at_us": town.now,
    }
    return ConsentRow(**(fields | changes))


@pytest.mark.parametrize("through_rooms", [True, False])
def test_of_sixteen_writers_at_once_one_wins(town: Town, through_rooms: bool) -> None:
    """Sixteen threads give the same consent: one is kept, and the rooms name it to all others."""
    start = threading.Barrier(WRITERS)
    outcomes: list[object] = []

    def give(number: int) -> None:
        from policy.guards.overlaps import write_alone

        row = word(town, number)
        start.wait()
        try:
            with town.database.unit_of_work() as session:
                if through_rooms:
                    write_alone(session, row)
                else:
                    session.add(row)
            outcomes.append(row.id)
        except (Overlaps, DBAPIError) as error:
            outcomes.append(error)

    threads = [threading.Thread(target=give, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [kept] = [one for one in outcomes if isinstance(one, str)]
    refused = [one for one in outcomes if not isinstance(one, str)]
    assert len(refused) == WRITERS - 1
    for one in refused:
        if through_rooms:
            assert isinstance(one, Overlaps)
            assert (one.code, one.facts["existing"]) == ("overlaps", kept)
        else:
            assert "consents overlap" in str(one)


def test_either_engine_judges_every_pair_of_small_intervals_alike(town: Town) -> None:
    """All pairs of intervals over three moments: the database refuses those that meet, and no other."""
    spans = [(start, end) for start in range(3) for end in (None, *range(start + 1, 4))]
    for number, (one, two) in enumerate((one, two) for one in spans for two in spans):
        meets = one[0] < (two[1] or 99) and two[0] < (one[1] or 99)
        rows = [
            word(town, 2 * number + place, purpose=f"pair-{number}", valid_from_us=start, valid_until_us=end)
            for place, (start, end) in enumerate((one, two))
        ]
        values = [{name: getattr(row, name) for name in COLUMNS} for row in rows]
        with town.database.unit_of_work() as session:
            session.execute(insert(ConsentRow), values[:1])
            try:
                with session.begin_nested():
                    session.execute(insert(ConsentRow), values[1:])
            except DBAPIError:
                assert meets, (one, two)
            else:
                assert not meets, (one, two)


@pytest.mark.parametrize(
    "other",
    [
        {"purpose": "medical-research"},
        {"recipient": "shop"},
        {"commercial": 1},
        {"region": "us"},
        {"effect": "forbid"},
        {"state": "withdrawn"},
        {"tenant": "beta"},
    ],
)
def test_what_says_something_else_may_hold_at_the_same_time(town: Town, other: dict[str, Any]) -> None:
    """A consent that differs in one word, is no permission or is no longer live is in nobody's way."""
    with town.database.unit_of_work() as session:
        session.add(word(town, 1))
        session.flush()
        session.add(word(town, 2, **other))


def test_a_second_consent_or_grant_is_refused_by_name(town: Town) -> None:
    """Proposing what is permitted already names what is in the way; withdrawing that clears it."""
    expert = town.expert()
    town.widen(town.ada, town.alan, consent(expert))
    grant = GrantGive(expert_id=expert.expert_id, consumer_tenant="shop")
    town.widen(town.ada, town.alan, grant)
    standing = town.act(lambda register: register.consents("acme"))[0].id
    with pytest.raises(Overlaps) as refusal:
        town.propose(town.ada, consent(expert))
    assert refusal.value.facts["existing"] == standing
    with pytest.raises(Overlaps):
        town.propose(town.ada, grant)
    town.act(lambda register: register.withdraw_consent(standing, town.ada))
    town.widen(town.ada, town.alan, consent(expert))


def test_prohibitions_are_never_in_each_others_way(town: Town) -> None:
    """An owner may forbid the same thing twice: narrowing is not refused."""
    expert = town.expert()
    for _ in range(2):
        item = ForbidUse(expert_id=expert.expert_id, purpose=PURPOSE)
        town.act(lambda register, item=item: register.forbid_use(item, town.ada))
    assert len(town.act(lambda register: register.consents("acme"))) == 2


def test_grants_of_two_tenants_for_two_experts_do_not_meet(town: Town) -> None:
    """The guard over grants tells experts and consumers apart."""
    one, two = town.expert("acme", "one"), town.expert("acme", "two")
    for expert, consumer in ((one, "shop"), (one, "club"), (two, "shop")):
        town.widen(town.ada, town.alan, GrantGive(expert_id=expert.expert_id, consumer_tenant=consumer))
    with town.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(GrantRow)) == 3


def test_a_stale_edit_of_a_deployment_is_refused(town: Town) -> None:
    """Who names the version that was read is refused when another was put meanwhile, also at removal."""
    first = deployment(town.base)
    town.widen(town.dora, town.carl, first)
    with town.register() as register:
        assert register.deployment(first.name).version == 1
    stale = first.model_copy(update={"top_k": 1, "expected_version": 1})
    late = town.propose(town.dora, stale)
    town.widen(town.dora, town.carl, first.model_copy(update={"top_k": 3, "expected_version": 1}))
    with town.register() as register, pytest.raises(StaleVersion) as refusal:
        register.approve(late.id, late.digest, town.carl)
    assert (refusal.value.facts["expected"], refusal.value.facts["present"]) == (1, 2)
    with pytest.raises(StaleVersion):
        town.propose(town.dora, stale)
    with town.register() as register, pytest.raises(StaleVersion):
        register.remove_deployment(first.name, town.dora, expected_version=1)
    town.act(lambda register: register.remove_deployment(first.name, town.dora, expected_version=2))

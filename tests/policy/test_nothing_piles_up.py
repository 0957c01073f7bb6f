# SPDX-License-Identifier: Apache-2.0
"""A process that publishes and meters for long keeps no more than one that has just begun."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from functools import _lru_cache_wrapper
from typing import Any

import pytest
from town import Town, consent, usage

from policy.publishing.decision_log import place_of_verdicts
from policy.records.assets import ExpertRecord
from policy.register import Register

OURS = ("model_core", "tenants", "policy")
ROUNDS = 12


def kept() -> Counter[str]:
    """Objects of the product's own classes that are alive, by class; caches that are bounded are emptied."""
    for cache in bounded_caches():
        cache.cache_clear()
    gc.collect()
    kinds = (type(one) for one in gc.get_objects())
    return Counter(kind.__qualname__ for kind in kinds if str(kind.__module__).partition(".")[0] in OURS)


def bounded_caches() -> list[Any]:
    """What remembers answers of the product's functions, up to a number of them."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] in OURS]
    things = {id(one): one for module in modules for one in vars(module).values()}.values()
    caches = [one for one in things if isinstance(one, _lru_cache_wrapper)]
    return [one for one in caches if one.cache_parameters()["maxsize"] is not None]


def give_and_withdraw(town: Town, expert: ExpertRecord) -> None:
    """Two epochs, each of which turns the answer of every deployment."""
    given = [one for one in town.act(lambda register: register.consents("acme")) if one.state == "given"]
    town.act(lambda register: register.withdraw_consent(given[-1].id, town.ada))
    town.widen(town.ada, town.carl, consent(expert))


def answer(town: Town, sequence: int) -> None:
    """Admits a request and meters what a host said of it."""
    reservation = town.reserve()
    with town.metering() as metering:
        record = usage(reservation, {"public": 5_000_000}, 5, final=True)
        assert metering.record("host-1", sequence, [record]) == sequence


@pytest.fixture
def expert(town: Town) -> ExpertRecord:
    """The one that answers in ``shop-ask``."""
    made = town.expert()
    town.open_all(made)
    town.budget("shop", 10**12)
    return made


def test_publications_and_answers_leave_no_objects_behind(town: Town, expert: ExpertRecord) -> None:
    """After many more epochs and answers as many objects are alive as after the first ones."""
    before = Counter[str]()
    for number in range(ROUNDS + 2):
        if number < 3:  # what was emptied fills again
            before = kept()
        give_and_withdraw(town, expert)
        answer(town, number + 1)
    more = {name: count for name, count in (kept() - before).items() if count >= ROUNDS}
    assert not more


def test_only_the_last_answer_of_a_deployment_is_kept_to_compare_with(
    town: Town, expert: ExpertRecord
) -> None:
    """However often an answer turned, verdicts of one of them are in memory."""
    place_of_verdicts.cache_clear()
    for _ in range(3):
        give_and_withdraw(town, expert)
    with town.register() as register:
        logged = register.decisions(deployment="shop-ask")
    assert len(logged) > 6
    assert place_of_verdicts.cache_info().currsize == 1
    [(last, _)] = place_of_verdicts("shop-ask")
    assert last == logged[0].id


def test_an_answer_whose_publication_was_undone_is_not_compared_with(
    town: Town, expert: ExpertRecord
) -> None:
    """A withdrawal that failed on its way is logged when it is repeated."""
    [given] = town.act(lambda register: register.consents("acme"))
    with town.database.unit_of_work() as session:
        Register(session, town.now).withdraw_consent(given.id, town.ada)
        session.rollback()
    epoch = town.act(lambda register: register.withdraw_consent(given.id, town.ada)).epoch
    with town.register() as register:
        last = register.decisions(deployment="shop-ask")[0]
    assert (last.epoch, [one.verdict for one in last.verdicts]) == (epoch, ["deny"])
    assert expert.expert_id == last.verdicts[0].expert_id

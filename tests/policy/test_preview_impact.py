# SPDX-License-Identifier: Apache-2.0
"""Impact reports: every logged decision and live deployment, exact, bounded, and never part of the draft."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import func, select
from town import PURPOSE, REGION, Town, consent, deployment, digest, usage
from worlds import random_world

from policy.deciding.composition import compose
from policy.deciding.questions import Question
from policy.errors import NotFound
from policy.facts.snapshot import Snapshot
from policy.preview import previews as previews_module
from policy.preview.asking import Asking
from policy.preview.previews import Previews
from policy.preview.report import ImpactReport
from policy.preview.worth import UNMEASURED, Worth
from policy.records.items import ForbidRule, ListingPut, RuleLift, RulePermit
from policy.tables import DecisionRow

EVIDENCE = digest("a study")


@contextmanager
def room(town: Town) -> Iterator[Previews]:
    """The weighing room in a unit of work."""
    town.now += 1_000_000
    with town.database.unit_of_work() as session:
        yield Previews(session, town.now)


def weighed(town: Town, change_id: str) -> ImpactReport:
    """The report of a change, made and kept."""
    with room(town) as previews:
        report = previews.weigh(previews.plan_change(change_id))
        previews.store(report)
    return report


def asked(town: Town, **fields: Any) -> Question:
    """A question of the shop that names no deployment."""
    use = {
        "tenant": "shop",
        "base_digest": town.base,
        "purpose": PURPOSE,
        "region": REGION,
        "commercial": False,
    }
    return Question(at_us=town.now, **(use | fields))


def log(town: Town, *questions: Question) -> None:
    """Answers questions under the epoch in force, and logs them."""
    with town.register() as register:
        for question in questions:
            register.record_decisions(compose(register.snapshot(), question), question)


def test_who_gains_and_loses_is_counted_over_the_whole_log(town: Town) -> None:
    """A draft that forbids nothing and permits one purpose changes exactly the questions for it."""
    expert = town.expert()
    town.open_all(expert)
    uses = [asked(town), *(asked(town, purpose="education", top_k=n) for n in (1, 2, 3))]
    log(town, *uses, asked(town, tenant="club", purpose="education"))
    change = town.propose(town.ada, consent(expert, purpose="education"))
    with room(town) as previews:
        logged = previews._session.scalar(select(func.count()).select_from(DecisionRow))
    report = weighed(town, change.id)
    assert report.decisions == logged
    assert (report.decisions_changed, report.decisions_stopped, report.decisions_begun) == (3, 0, 0)
    (line,) = report.experts
    assert (line.expert_id, line.decisions_gained, line.decisions_lost) == (expert.expert_id, 3, 0)
    (consumer,) = report.consumers
    assert (consumer.tenant, consumer.decisions_changed, consumer.gained) == ("shop", 3, (expert.expert_id,))
    assert [row.effect for row in report.deployments] == ["stays"]


def test_deployments_are_judged_by_what_is_left(town: Town) -> None:
    """Endpoints begin, shrink below what they ask, and end; none of it is in force yet."""
    one, two = town.expert(), town.expert("beta", "numbers")
    town.open_all(one, two)
    town.widen(town.dora, town.carl, deployment(town.base, top_k=3))
    put = deployment(town.base, "shop-new", candidates=(one.expert_id,))
    begins = weighed(town, town.propose(town.dora, put).id)
    assert {row.deployment: row.effect for row in begins.deployments} == {
        "shop-ask": "stays",
        "shop-new": "begins",
    }
    with room(town) as previews:
        before = previews._publisher.standing().snapshot
    suspended = town.act(lambda register: register.suspend_expert(two.expert_id, town.bob))
    with room(town) as previews:
        plan = previews.plan_publication(suspended.epoch)
        assert plan.before.digest == before.digest
        narrowed = previews.weigh(plan)
    (row,) = narrowed.deployments
    assert (row.effect, row.below_asked, row.lost) == ("shrinks", True, (two.expert_id,))
    assert [(line.expert_id, line.deployments_lost) for line in narrowed.experts] == [
        (two.expert_id, ("shop-ask",))
    ]
    unrelated = ForbidRule(text="elsewhere", purpose="sales")
    later = town.act(lambda register: register.add_forbid_rule(unrelated, town.carl))
    with room(town) as previews:
        (same,) = previews.weigh(previews.plan_publication(later.epoch)).deployments
    assert (same.effect, same.below_asked) == ("stays", False)
    town.act(lambda register: register.remove_deployment("shop-ask", town.dora))
    with room(town) as previews:
        epoch = previews._publisher.current_epoch()
        ended = previews.weigh(previews.plan_publication(epoch))
    assert [row.effect for row in ended.deployments] == ["ends"]


def test_questions_that_are_answered_no_more_are_counted(town: Town) -> None:
    """Also where no expert is lost: a suspended consumer's questions for the public base alone stop."""
    town.open_all(town.expert())
    log(town, asked(town, tenant="club"))
    stopped = town.act(lambda register: register.suspend_tenant("club", town.olga))
    with room(town) as previews:
        report = previews.weigh(previews.plan_publication(stopped.epoch))
    assert (report.decisions_changed, report.decisions_stopped, report.decisions_begun) == (1, 1, 0)
    assert [(row.tenant, row.decisions_changed) for row in report.consumers] == [("club", 1)]


def test_money_that_moves_is_counted_to_the_micro(town: Town) -> None:
    """Revenue of the last thirty days is lost where the expert goes, and repriced where it stays."""
    expert = town.expert()
    town.open_all(expert, price=2_000)
    town.budget("shop", 10**9)
    held = town.reserve(500)
    with town.metering() as metering:
        metering.record("host", 1, [usage(held, {expert.bundle_digest: 300_000_000}, 300, final=True)])
    dearer = ListingPut(expert_id=expert.expert_id, price_micro_per_1k_tokens=3_000, license="MIT")
    report = weighed(town, town.propose(town.ada, dearer).id)
    (line,) = report.money
    assert (line.before_micro, line.after_micro, line.owner) == (600, 900, "acme")
    assert (report.revenue_micro, report.revenue_after_micro) == (600, 900)
    halted = town.act(lambda register: register.add_forbid_rule(ForbidRule(text="halt"), town.carl))
    with room(town) as previews:
        lost = previews.weigh(previews.plan_publication(halted.epoch))
    assert (lost.revenue_micro, lost.revenue_after_micro) == (600, 0)
    town.now += 31 * 24 * 3600 * 1_000_000
    with room(town) as previews:
        assert previews.weigh(previews.plan_publication(halted.epoch)).money == ()


def test_quality_is_summed_where_measured_and_unknown_elsewhere(town: Town) -> None:
    """The deployment's own measurement counts before the general one, the last before earlier ones."""
    one, two = town.expert(), town.expert("beta", "numbers")
    town.open_all(one, two)
    halt = ForbidRule(text="halt")
    forbidden = town.act(lambda register: register.add_forbid_rule(halt, town.carl))
    halted = forbidden.epoch

    def quality() -> Any:
        with room(town) as previews:
            return previews.weigh(previews.plan_publication(halted)).deployments[0].quality

    (nothing,) = quality()
    assert (nothing.metric, nothing.cost_micro) == (UNMEASURED, 0)
    assert nothing.unknown == tuple(sorted((one.expert_id, two.expert_id)))
    with room(town) as previews:
        worth = Worth(previews._session, town.now)
        worth.record(town.olga, one.expert_id, "bits_per_byte", 11, EVIDENCE)
        worth.record(town.olga, one.expert_id, "bits_per_byte", 5, EVIDENCE, "shop-ask")
        last = worth.record(town.olga, one.expert_id, "bits_per_byte", 7, EVIDENCE, "shop-ask")
        with pytest.raises(NotFound):
            worth.record(town.olga, "exp_none", "bits_per_byte", 7, EVIDENCE)
        assert len(worth.evaluations(one.expert_id)) == 3
        assert worth.evaluations(two.expert_id) == []
    (found,) = quality()
    assert (found.metric, found.cost_micro, found.evaluations) == ("bits_per_byte", 7, (last.id,))
    assert found.unknown == (two.expert_id,)
    back = weighed(town, town.propose(town.carl, RuleLift(rule_id=forbidden.subject)).id)
    assert back.deployments[0].quality[0].cost_micro == -7


def test_a_report_is_bound_to_its_change_and_epoch(town: Town) -> None:
    """Kept once under its digest, stale after another epoch, and renewed by the office after its patience."""
    town.open_all(town.expert())
    change = town.propose(town.carl, RulePermit(text="x"))
    with room(town) as previews:
        assert previews.of_change(change.id) is None
        assert previews.next_change(0) == change.id
    report = weighed(town, change.id)
    assert (report.change_digest, report.epoch_base) == (
        change.digest,
        town.act(lambda register: register.current_epoch()),
    )
    with room(town) as previews:
        assert previews.store(report) == report.digest
        kept = previews.of_change(change.id)
        assert kept == report
        assert not previews.is_stale(report)
        assert previews.next_change(0) is None
    halted = town.act(lambda register: register.add_forbid_rule(ForbidRule(text="y"), town.carl))
    with room(town) as previews:
        assert previews.is_stale(report)
        assert previews.next_change(10**12) is None
        assert previews.next_change(0) == change.id
        assert previews.next_publication() == halted.epoch
        previews.store(previews.weigh(previews.plan_publication(halted.epoch)))
        assert previews.of_epoch(halted.epoch) is not None
        assert previews.next_publication() is None
    town.act(lambda register: register.approve(change.id, change.digest, town.cleo))
    with room(town) as previews:
        assert previews.next_change(0) is None


def test_simulating_keeps_nothing(town: Town) -> None:
    """Edits that nobody drafted are weighed like drafts, and neither facts nor reports are left."""
    expert = town.expert()
    town.open_all(expert)
    log(town, asked(town, purpose="education"))
    item = consent(expert, purpose="education")
    with room(town) as previews:
        supposed = previews.simulate([item], "acme")
    change = town.propose(town.ada, item)
    drafted = weighed(town, change.id)
    bound = {"change_id": None, "change_digest": "", "at_us": 0, "usage_since_us": 0}
    assert supposed.model_copy(update=bound) == drafted.model_copy(update=bound)
    with town.register() as register:
        assert len(register.consents("acme")) == 1
        assert len(register.changes("proposed")) == 1


def test_pages_of_the_log_change_nothing(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read two by two the log gives the report that it gives in one piece, and no page is longer."""
    expert = town.expert()
    town.open_all(expert)
    log(town, *(asked(town, top_k=n, purpose="education") for n in range(1, 8)))
    change = town.propose(town.ada, consent(expert, purpose="education"))
    whole = weighed(town, change.id)
    monkeypatch.setattr(previews_module, "PAGE", 2)
    with room(town) as previews:
        plan = previews.plan_change(change.id)
        asking = previews.begin(plan)
        last, pages = previews.ask_page(asking, ""), 0
        while last is not None:
            pages += 1
            assert asking.decisions <= 2 * pages
            last = previews.ask_page(asking, last)
        assert pages > 3
        paged = previews.finish(plan, asking)
    same = {"at_us": whole.at_us, "usage_since_us": whole.usage_since_us}
    assert paged.model_copy(update=same) == whole


def test_counts_agree_with_asking_one_by_one() -> None:
    """Over random worlds the counts are those of composing each logged question on both snapshots."""
    moved = 0
    for seed in range(30):
        after, _ = random_world(seed)
        dice = random.Random(seed)
        fewer = {
            kind: tuple(fact for fact in getattr(after, kind) if dice.random() < 0.7)
            for kind in ("consents", "grants", "rules", "experts")
        }
        before = after.model_copy(update=fewer)
        found = [random_world(1_000 * seed + n)[1] for n in range(20)]
        questions = [one for one in found if one.deployment in {None, *after.deployments_by_name}]
        at_us = dice.randrange(3_000_000)
        told = Asking(before, after, at_us)
        told.ask([(str(one.tenant), one) for one in questions])
        gained, lost, changed = _one_by_one(before, after, at_us, questions)
        assert (told.gained, told.lost, told.changed) == (gained, lost, changed)
        moved += changed
    assert moved > 50


def _one_by_one(
    before: Snapshot, after: Snapshot, at_us: int, questions: list[Question]
) -> tuple[Counter[str], Counter[str], int]:
    gained: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    changed = 0
    for question in questions:
        at = question.model_copy(update={"at_us": at_us})
        old, new = compose(before, at), compose(after, at)
        had = {one.bundle_digest: one.expert_id for one in old.members}
        has = {one.bundle_digest: one.expert_id for one in new.members}
        gained.update(has[one] for one in has.keys() - had.keys())
        lost.update(had[one] for one in had.keys() - has.keys())
        changed += had != has or old.verdict != new.verdict
    return gained, lost, changed

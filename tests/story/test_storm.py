# SPDX-License-Identifier: Apache-2.0
"""Withdrawals under load through the running service, in one process, and a judge that misses nothing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.home import Home
from cluster.hosting.facts import HostSettings
from cluster.settings import Settings
from examples.chaos.evidence import Rows, Tokens, journaled
from examples.storm import judge, play
from examples.storm.goods import SMALL
from examples.storm.hosts import forget_masks
from examples.storm.local import LocalHouse
from examples.storm.publisher import Act, Publisher
from examples.storm.recorder import Recorder
from examples.storm.streams import Answer, Crowd, Load
from examples.storm.town import Town, expert_sets, found

_CYCLES = 2
_KERNELS = Path(__file__).parents[2] / "build" / "kernels"
_STREAMS = 10


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A founded home of one test's own."""

    home: Path
    town: Town
    record: Path

    def house(
        self, *, hosts: int, keeps: bool = True, pace_s: float = 0.0, compiled: bool = False
    ) -> LocalHouse:
        """The marketplace in it; compiled kernels are those that other tests use too."""
        choices = HostSettings(
            max_sequences=32,
            max_context=128,
            keep_poisoned=keeps,
            kernels=_KERNELS if compiled else None,
            weights=self.home / "weights" if compiled else None,
        )
        settings = Settings(home=self.home, starter_base="none")
        return LocalHouse(settings, self.town.base_digest, hosts=hosts, host_settings=choices, pace_s=pace_s)


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Town]:
    """Sixteen experts and sixteen endpoints, each with a set of its own."""
    folder = tmp_path_factory.mktemp("storm")
    town = found(Settings(home=folder / "home", starter_base="none"), folder / "scratch", sizes=SMALL)
    return folder / "home", town


@pytest.fixture
def ground(founded: tuple[Path, Town], tmp_path: Path) -> Iterator[Ground]:
    """A copy of the founded home."""
    home, town = founded
    shutil.copytree(home, tmp_path / "home")
    yield Ground(home=tmp_path / "home", town=town, record=tmp_path / "record")
    shutil.rmtree(tmp_path / "home")


def _storm(
    ground: Ground, *, hosts: int, cycles: int, keeps: bool = True, compiled: bool = False
) -> tuple[Crowd, Publisher]:
    town = ground.town
    first = town.wares[0].name
    using = {name: one for name, one in town.endpoints.items() if first in one[1]}
    running = ground.house(hosts=hosts, keeps=keeps, pace_s=0.02, compiled=compiled)
    with Recorder(ground.record).installed(), running as house:
        crowd = Crowd(house.url, town.keys, using, Load(streams=_STREAMS, tokens=(70, 90)))
        play.wait_for_servers(house, town, hosts, timeout_s=60)
        crowd.start()
        play.await_streams(crowd, _STREAMS // 2, timeout_s=60)
        publisher = Publisher(house.client, town)
        play.run_cycles_of_one(publisher, town, crowd, cycles, servers=hosts)
        crowd.stop()
        publisher.close()
    return crowd, publisher


def test_answers_beside_other_sets_are_those_alone(ground: Ground) -> None:
    """32 greedy streams over 16 expert sets, prompts repeated: each says what it says alone."""
    with ground.house(hosts=1) as house:
        play.wait_for_servers(house, ground.town, 1, timeout_s=60)
        outcome = play.compare_sets(house, ground.town, tokens=12)
    assert not outcome.differing
    assert outcome.compared > 700
    assert outcome.narrow <= 0.001 * outcome.compared


def test_no_row_is_multiplied_by_a_withdrawn_expert(ground: Ground) -> None:
    """Two hosts under load, two withdrawals: recorder, receipts and books agree, nothing fails."""
    crowd, publisher = _storm(ground, hosts=2, cycles=_CYCLES, compiled=True)
    home, digests = Home(ground.home), ground.town.digests
    forbidden = judge.Forbidden.of(publisher.acts, digests)
    metered, verdict = Rows(home).usage(), judge.Verdict()
    engines = judge.judge_engines(ground.record, forbidden, metered, SMALL.n_layers, verdict)
    judge.judge_books(journaled(home), metered, verdict)
    judge.judge_receipts(crowd.answers, metered, digests, verdict)
    judge.judge_journaled(Rows(home).uses(), Rows(home).commits(), forbidden, verdict)
    judge.judge_releases(crowd.answers, forbidden, digests, 3_000_000, verdict)
    assert verdict.broken == []
    assert [answer.failed for answer in crowd.answers if answer.failed] == []
    assert len(engines) == 2
    assert judge.judge_use(engines, publisher.acts, digests) == _CYCLES
    assert verdict.figures["tokens recomputed"] > 0


def test_a_host_that_forgets_the_mask_is_noticed(ground: Ground) -> None:
    """A host that acknowledges a withdrawal and goes on multiplying is caught by the recorder."""
    restore = forget_masks()
    try:
        _, publisher = _storm(ground, hosts=1, cycles=1, keeps=False)
    finally:
        restore()
    verdict = judge.Verdict()
    forbidden = judge.Forbidden.of(publisher.acts, ground.town.digests)
    judge.judge_engines(ground.record, forbidden, Rows(Home(ground.home)).usage(), SMALL.n_layers, verdict)
    assert verdict.figures["forbidden rows multiplied"] > 0


_DIGESTS = {"one": "sha256:" + "1" * 64, "two": "sha256:" + "2" * 64}
_ONE, _TWO = "1" * 12, "2" * 12
_ACTS = (
    Act(kind="withdraw", name="one", epoch=5, sent_us=900, told_us=1_000),
    Act(kind="give", name="one", epoch=6, sent_us=9_000_000, told_us=9_001_000),
)
_LINES: tuple[dict[str, object], ...] = (
    {"kind": "applied", "epoch": 4},
    {"kind": "step", "from_us": 1, "to_us": 2, "rows": {_ONE: 4, _TWO: 4}},
    {"kind": "kept", "ppm": {_ONE: 1_500_000, _TWO: 500_000}, "tokens": 2},
    {"kind": "applied", "epoch": 5},
    {"kind": "acknowledged", "server": "srv", "epoch": 5},
    {"kind": "step", "from_us": 3, "to_us": 4, "rows": {_TWO: 4}},
    {"kind": "kept", "ppm": {_TWO: 2_000_000}, "tokens": 2},
)


_NUMBERS = {"rows multiplied", "steps", "tokens recomputed", "latest token after commit, ms"}
_NUMBERS |= {"answers that moved to another replica"}


def _usage() -> dict[tuple[str, str], Tokens]:
    experts = Counter({_DIGESTS["one"]: 1_500_000, _DIGESTS["two"]: 2_500_000})
    return {("srv", "req"): Tokens(completion=4, experts=experts)}


def _judged(folder: Path, lines: tuple[dict[str, object], ...]) -> set[str]:
    (folder / "one.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    verdict = judge.Verdict()
    forbidden = judge.Forbidden.of(_ACTS, _DIGESTS)
    judge.judge_engines(folder, forbidden, _usage(), 2, verdict)
    return set(verdict.figures.keys() - _NUMBERS) & {one.partition(":")[0] for one in verdict.broken}


@pytest.mark.parametrize(
    ("place", "change", "noticed"),
    [
        (0, {}, None),
        (5, {"rows": {_ONE: 1, _TWO: 4}}, "forbidden rows multiplied"),
        (4, {"epoch": 6}, "acknowledged before in force"),
        (1, {"rows": {_TWO: 4}}, "attributed, not multiplied"),
        (1, {"rows": {_ONE: 2, _TWO: 4}}, "recorder against usage"),
        (6, {"ppm": {_TWO: 1_900_000}}, "recorder against usage"),
        (4, {"server": "other"}, "recorder against usage"),
    ],
)
def test_every_lie_of_an_engine_is_noticed(
    tmp_path: Path, place: int, change: dict[str, object], noticed: str | None
) -> None:
    """One changed line of a recorder's file breaks exactly the promise that it belongs to."""
    lines = [dict(line) for line in _LINES]
    lines[place].update(change)
    kinds = _judged(tmp_path, tuple(lines))
    assert kinds == set() if noticed is None else noticed in kinds


def _answer() -> Answer:
    parts = [
        {"epoch": 4, "from_token": 0, "to_token": 2, "experts": {"one": 1_500_000, "two": 500_000}},
        {"epoch": 5, "from_token": 2, "to_token": 4, "experts": {"two": 2_000_000}},
    ]
    times = [10, 20, 30, 40]
    return Answer(
        endpoint="desk", request_id="req", tokens=list("abcd"), arrivals_us=times, segments=parts, ended=True
    )


def _late(answer: Answer) -> None:
    answer.arrivals_us[1] = 1_000 + judge.LEASE_US + 600_000


def _forbidden_part(answer: Answer) -> None:
    answer.segments[1]["experts"] = {"one": 2_000_000}


def _more(answer: Answer) -> None:
    answer.tokens.append("e")
    answer.arrivals_us.append(50)


def _went_on_as_another(answer: Answer) -> None:
    answer.continued_as = ("other.2",)


def _moved(answer: Answer) -> None:
    answer.continued_as = ("req.2",)
    answer.segments[1]["experts"] = {"two": 1_000_000}


@pytest.mark.parametrize(
    ("lie", "noticed"),
    [
        (lambda _answer: None, set()),
        (_moved, set()),
        (_went_on_as_another, {"receipts against ledger"}),
        (_late, {"released after commit + 2 s"}),
        (_forbidden_part, {"receipts that name a forbidden expert", "receipts against ledger"}),
        (_more, {"receipts against ledger"}),
    ],
)
def test_every_lie_of_a_receipt_is_noticed(lie: Callable[[Answer], None], noticed: set[str]) -> None:
    """A late token, a forbidden expert in a receipt, and a token that nobody metered are noticed."""
    answer, verdict = _answer(), judge.Verdict()
    lie(answer)
    forbidden = judge.Forbidden.of(_ACTS, _DIGESTS)
    judge.judge_receipts([answer], _usage(), _DIGESTS, verdict)
    judge.judge_releases([answer], forbidden, _DIGESTS, 500_000, verdict)
    kinds = {what for what, number in verdict.figures.items() if number and what not in _NUMBERS}
    assert kinds == noticed


@pytest.mark.parametrize(("name", "noticed"), [("req.2", False), ("other", True)])
def test_what_a_move_metered_counts_although_the_client_left(name: str, noticed: bool) -> None:
    """Requests behind an answer are found by their names, not only by what its last event would have said."""
    answer, verdict = _answer(), judge.Verdict()
    answer.ended, answer.segments = False, []
    metered = {("srv", "req"): Tokens(completion=1), ("other", name): Tokens(completion=3)}
    judge.judge_receipts([answer], metered, _DIGESTS, verdict)
    assert bool(verdict.broken) is noticed


@pytest.mark.parametrize(
    ("epoch", "at_us", "late"),
    [
        (4, 1_000 + judge.LEASE_US, False),
        (4, 1_001 + judge.LEASE_US, True),
        (5, 1_000, True),
        (6, 10**9, False),
        (4, 10**9, False),
    ],
)
def test_a_token_that_is_journaled_too_late_is_noticed(epoch: int, at_us: int, late: bool) -> None:
    """Until the lease ends it may leave, in a forbidding epoch never, and later when permitted again."""
    verdict, forbidden = judge.Verdict(), judge.Forbidden.of(_ACTS, _DIGESTS)
    judge.judge_journaled([("req", _DIGESTS["one"], epoch, at_us)], {5: 1_000}, forbidden, verdict)
    assert bool(verdict.broken) is late


def test_books_that_differ_are_noticed() -> None:
    """A token that one book holds and the other does not is noticed; empty requests are not."""
    verdict = judge.Verdict()
    judge.judge_books(_usage() | {("srv", "empty"): Tokens()}, _usage(), verdict)
    assert verdict.broken == []
    judge.judge_books({}, _usage(), verdict)
    assert verdict.figures["journals against ledger"] == 1


def test_the_last_host_counts_for_the_latency() -> None:
    """Latency runs to the slowest host's first acknowledgement of the epoch or a later one."""
    told = [("a", 4, 50), ("a", 5, 3_000), ("b", 4, 60), ("b", 6, 9_000), ("new", 6, 99_000)]
    assert judge.acknowledgement_ms([(5, 1_000)], told, _ACTS) == [8.0]


def test_sets_differ_and_use_every_expert() -> None:
    """Fifty sets of four among sixteen experts are all different and use every expert about equally."""
    names = tuple(f"e{number}" for number in range(16))
    sets = expert_sets(names, 50, 4)
    uses = Counter(name for one in sets for name in one)
    assert len(set(sets)) == 50
    assert min(uses.values()) >= 0.5 * max(uses.values())

# SPDX-License-Identifier: Apache-2.0
"""A small world for the recomposition protocol: an office, one host with a stream, their network and clocks.

Time is counted in ticks; the office's clock is the true one. Everything that a host decides, it decides with
the functions that the product runs: ``GateFacts`` (lease, clocks, release), ``is_newer`` and ``make_plan``.
What surrounds them in the product (threads, sockets, loading) is here a choice of which action comes next:

- a question that is never answered was lost, like its answer; it may be answered at any later time, with the
  news of any moment since it was sent, and as often as it likes, so that delays, every order and any number
  of copies occur;
- a host that does nothing while time passes is paused, also between the start and the end of a step;
- a host may crash and start anew, its boot clock may lag, its wall clock may be behind or be set back;
- the office may be restored to an older state and go on from there.

Hosts never speak to each other, so a host's actions depend on nothing but its own state, the tick and the
office. ``protocol_search`` puts several hosts side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

from cluster.hosting.errors import EpochRefused
from cluster.hosting.lease import GateFacts, Lease, OfficeClock, WallClockWatch
from cluster.hosting.news import is_newer
from cluster.hosting.plan import Plan, Roster, Running, Served, make_plan
from cluster.office.protocol import EpochNews

#: Length of a lease, and by how much less than it a host holds it.
TTL = 3
DRIFT_PPM = 333_333
EXPERTS = ("A", "B")
#: The first tick: well above 0, which stands for long ago.
FIRST = 100

Experts = tuple[str, ...]
#: Permitted experts of an epoch, and until which tick; None for as long as the epoch.
Content = tuple[tuple[str, int | None], ...]


class Question(NamedTuple):
    """Sent by a host; ``true`` and ``news`` say when, by the tick and by how much had happened."""

    sent: int
    true: int
    news: int
    epoch: int
    digest: str


class Answer(NamedTuple):
    """Sent by the office; ``past`` are the digests of all its epochs, for the properties alone."""

    question: Question
    epoch: int
    digest: str
    seen_digest: str
    stopped: bool
    past: tuple[str, ...]


class News(NamedTuple):
    """A state of the office: since when, the digests of its epochs from 1, whether the request is stopped."""

    tick: int
    past: tuple[str, ...]
    stopped: bool


class Office(NamedTuple):
    """All that has happened, in order; a restored office goes on with another branch."""

    news: tuple[News, ...] = (News(FIRST, (), False),)
    branch: int = 0

    def since(self, tick: int) -> tuple[str, ...]:
        """The epochs that were current at this tick or later."""
        last = max(place for place, one in enumerate(self.news) if one.tick <= tick or not place)
        return tuple(one.past[-1] for one in self.news[last:] if one.past)


_NO_FACTS = GateFacts(
    lease=Lease(drift_ppm=DRIFT_PPM),
    watch=WallClockWatch(tolerance_us=0),
    office=OfficeClock(drift_ppm=DRIFT_PPM),
)


class Host(NamedTuple):
    """One host; ``steady`` counts the ticks since its boot clock lagged.

    The properties alone look at ``peak``, the highest epoch ever in force, and ``begun``, the true tick at
    which its lease began.
    """

    wall: int
    steady: int = TTL
    facts: GateFacts = _NO_FACTS
    epoch: int = -1
    digest: str = ""
    allowed: Experts = ()
    stream: Experts | None = None
    ended: bool = False
    step: Experts | None = None
    token: Experts | None = None
    hearing: Answer | None = None
    told_to_stop: bool = False
    acked: int = -1
    floor: int = -1
    network: frozenset[Question] = frozenset()
    crashes: int = 0
    set_back: int = 0
    peak: int = -1
    begun: int = 0


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How far a search goes.

    Attributes:
        script: contents of the epochs, in order.
        asks: questions of a host that are neither answered nor too old to renew its lease.
        walls: how far a host's wall clock may be off at the beginning.
        lags: whether a boot clock may lag by a tick within the length of a lease.
        crashes: per host.
        set_backs: times that a host's wall clock is set back by three ticks.
        restores: whether the office may once be restored to an older state.
        stops: whether the stream's request may be stopped.
        hosts: side by side.
    """

    script: tuple[Content, ...]
    asks: int = 2
    walls: tuple[int, ...] = (0,)
    lags: bool = False
    crashes: int = 0
    set_backs: int = 0
    restores: bool = False
    stops: bool = False
    hosts: int = 1

    @property
    def ends(self) -> int:
        """From this tick on no time bound of the script matters any more."""
        until = [one for content in self.script for _, one in content if one is not None]
        return max(until) + TTL + 1 if until else FIRST


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The protocol; each field that is changed makes a mutant of it."""

    from_sending: bool = True
    recheck: bool = True
    discard: bool = True
    ack_after_mask: bool = True
    refuses_lower: bool = True
    older_answers_change_nothing: bool = True
    judges_by_office: bool = True
    allows_for_drift: bool = True
    masks_before_renewal: bool = True
    voids_waiting_tokens: bool = True
    keeps_floor: bool = True
    checks_past: bool = True
    stops_before_renewal: bool = True

    @property
    def leases_are_right(self) -> bool:
        """Whether a question that is older than a lease is as good as none."""
        return self.from_sending and self.older_answers_change_nothing and self.allows_for_drift


Move = tuple[str, Host, str]


@dataclass(frozen=True, kw_only=True)
class World:
    """All actions of one host, with what each breaks (the empty string where it breaks nothing)."""

    bounds: Bounds
    rules: Rules = field(default_factory=Rules)

    # ── clocks and contents ───────────────────────────────────────────────────────────────────────────
    def wall(self, host: Host, tick: int) -> int:
        """The host's wall clock."""
        return tick + host.wall

    def content(self, digest: str) -> Content:
        """What an epoch permits. Another branch's epochs permit what the first script says."""
        return self.bounds.script[int(digest.split(".", maxsplit=1)[0]) - 1]

    def is_open(self, host: Host, tick: int) -> bool:
        """The gate."""
        facts, boot, wall = host.facts, tick, self.wall(host, tick)
        if self.rules.judges_by_office:
            return facts.opens(boot, wall)
        in_time = facts.expires_at_us is None or wall < facts.expires_at_us
        return facts.lease.valid_at(boot) and in_time

    def judge_time(self, host: Host, tick: int) -> int:
        """The time by which the host judges bounds."""
        if self.rules.judges_by_office:
            return host.facts.judge_time_us(tick, self.wall(host, tick))
        return self.wall(host, tick)

    # ── actions ───────────────────────────────────────────────────────────────────────────────────────
    def moves(self, host: Host, tick: int, office: Office) -> Iterator[Move]:
        """Every action that the host, its network or the office on its behalf may take now."""
        yield from self._talk(host, tick, office)
        yield from self._recompose(host, tick, office)
        yield from self._compute(host, tick, office)
        if host.crashes < self.bounds.crashes:
            yield "crashes and starts anew", self._crashed(host), ""
        if host.set_back < self.bounds.set_backs:
            set_back = host._replace(wall=host.wall - 3, set_back=host.set_back + 1)
            yield "has its wall clock set back by 3", set_back, ""

    def ticks(self, host: Host, tick: int) -> Iterator[tuple[str, Host]]:
        """The host after one more tick: its boot clock goes on, or lags.

        The boot clock is read as the tick, so a lag moves what was read from it before. Past ``ends`` ticks
        are not counted any more; all times move back instead, so that no run is too long for the search.
        """
        host = host._replace(facts=host.facts.seen(self.wall(host, tick)))
        back = 1 if tick >= self.bounds.ends else 0
        steady = min(TTL, host.steady + 1)
        yield "", self.settled(_moved(host, -back, -back)._replace(steady=steady), tick + 1 - back)
        if self.bounds.lags and host.steady >= TTL:
            lagged = _moved(host, 1 - back, -back)._replace(steady=1)
            yield " (its boot clock lags)", self.settled(lagged, tick + 1 - back)

    def settled(self, host: Host, tick: int) -> Host:
        """The host without what can no longer make a difference, so that equal futures are one state."""
        facts = host.facts
        if self.bounds.ends == FIRST:
            facts = replace(facts, office=_NO_FACTS.office)
            if not self.bounds.set_backs:
                facts = replace(facts, watch=_NO_FACTS.watch)
        if not self.rules.leases_are_right:
            return host._replace(facts=facts)
        if not facts.lease.valid_at(tick):
            facts = replace(facts, lease=_NO_FACTS.lease, office=_NO_FACTS.office)
            host = host._replace(begun=0)
        sent = facts.lease.sent_us or 0
        network = [_aged(question, sent, tick) for question in host.network]
        fresh = {question for question in network if question.sent}
        stale = [question for question in network if not question.sent]
        if not self.bounds.restores and not self.bounds.stops:
            # Epoch n is the n-th news; what is in force already is news no more.
            stale = [one._replace(news=max(one.news, host.epoch + 2)) for one in stale]
        if host.hearing is not None:
            aged = _aged(host.hearing.question, sent, tick)
            host = host._replace(hearing=host.hearing._replace(question=aged))
        # Of those that renew nothing any more, the one that may still be answered with the oldest news.
        oldest = {(one.epoch, one.digest): one for one in sorted(stale, reverse=True)}
        return host._replace(facts=facts, network=frozenset(fresh.union(oldest.values())))

    def _talk(self, host: Host, tick: int, office: Office) -> Iterator[Move]:
        if sum(1 for question in host.network if question.sent) < self.bounds.asks:
            seen = (host.epoch, host.digest) if self.bounds.restores else (-1, "")
            question = Question(tick, tick, len(office.news), *seen)
            if question not in host.network:
                network = host.network | {question}
                yield "asks", host._replace(network=network), ""
        if host.hearing is None:
            for question in host.network:
                for news in office.news[question.news - 1 :]:
                    if news.past:
                        yield from self._hear(host, tick, _answer(question, news))

    def _hear(self, host: Host, tick: int, answer: Answer) -> Iterator[Move]:
        """What ``RegisterLink._hear`` does before anything is applied."""
        if self._refused(host, answer):
            return
        heard = host._replace(hearing=answer)
        if answer.epoch == host.epoch and (not answer.stopped or host.told_to_stop):
            heard = self._renewed(host, answer, tick)
            if heard != host:
                yield f"hears epoch {answer.epoch} again and renews its lease", heard, ""
            return
        if not self.rules.masks_before_renewal:
            heard = self._renewed(heard, answer, tick)
        label = f"hears epoch {answer.epoch}" + (" and the stop" if answer.stopped else "")
        if not self.rules.ack_after_mask:
            heard = heard._replace(acked=max(heard.acked, answer.epoch))
            label += " and acknowledges at once"
        yield label, heard, self._mistake_of_acknowledgement(heard)

    def _refused(self, host: Host, answer: Answer) -> bool:
        if not self.rules.refuses_lower and answer.epoch != host.epoch:
            return False
        # Where no register is restored, its past is one: nothing is to be compared.
        seen = (host.epoch, host.digest)
        if self.bounds.restores and self.rules.checks_past:
            seen = (answer.question.epoch, answer.question.digest)
        elif not self.rules.checks_past:
            seen = (host.epoch, "")
        try:
            is_newer(_news(answer), host.epoch, host.digest, seen, host.floor)
        except EpochRefused:
            return True
        return False

    def _renewed(self, host: Host, answer: Answer, tick: int) -> Host:
        question = answer.question
        sent = question.sent if self.rules.from_sending else tick
        facts = host.facts.renewed(sent, TTL, question.true)
        if not self.rules.allows_for_drift:
            facts = _with_drift(facts, 0)
        lease = host.facts.lease
        if not self.rules.older_answers_change_nothing and lease.sent_us is not None and sent < lease.sent_us:
            # Adds what the older answer grants to what is left, as if leases were counted in answers.
            facts = replace(facts, lease=replace(lease, ttl_us=lease.ttl_us + TTL))
        return host._replace(facts=facts, begun=max(host.begun, question.true))

    def _recompose(self, host: Host, tick: int, office: Office) -> Iterator[Move]:
        """What happens on the engine's thread between two steps, and the acknowledgement after it."""
        if host.step is None and host.hearing is not None:
            answer = host.hearing
            broken = self._mistake_of_epoch(host, answer)
            applied = self._in_force(host, answer.epoch, answer.digest, tick)
            if answer.stopped and self.rules.stops_before_renewal:
                applied = applied._replace(stream=None, token=None, ended=True, told_to_stop=True)
            applied = self._renewed(applied, answer, tick)._replace(hearing=None)
            if answer.stopped:
                applied = applied._replace(told_to_stop=True)
            # At once: the earlier an epoch is acknowledged, the more it promises.
            applied = applied._replace(acked=max(applied.acked, applied.epoch))
            broken = broken or self._mistake_of_acknowledgement(applied)
            yield f"puts epoch {answer.epoch} in force and acknowledges it", applied, broken
        expires = host.facts.expires_at_us
        due = expires is not None and self.judge_time(host, tick) >= expires
        if due and host.step is None and host.hearing is None:
            yield (
                "lets an expert go whose time is over",
                self._in_force(host, host.epoch, host.digest, tick),
                "",
            )

    def _in_force(self, host: Host, epoch: int, digest: str, tick: int) -> Host:
        roster = _roster(epoch, digest, self.content(digest), self.judge_time(host, tick))
        allowed = roster.served["d"].experts
        stream, token = host.stream, host.token
        if stream is not None:
            plan = _plan(epoch, digest, self.content(digest), self.judge_time(host, tick), stream)
            if "s" in plan.recompose:
                stream = plan.recompose["s"].experts
                token = None if self.rules.voids_waiting_tokens else token
        facts = replace(host.facts, expires_at_us=roster.expires_at_us)
        return host._replace(
            epoch=epoch,
            digest=digest,
            allowed=allowed,
            facts=facts,
            stream=stream,
            token=token,
            floor=max(host.floor, epoch),
            peak=max(host.peak, epoch),
        )

    def _compute(self, host: Host, tick: int, office: Office) -> Iterator[Move]:
        opened = self.is_open(host, tick)
        if host.stream is None and not host.ended and host.epoch > 0:
            yield f"begins a stream with {_words(host.allowed)}", host._replace(stream=host.allowed), ""
        if host.stream is not None and host.step is None and host.token is None and opened:
            yield f"starts a step with {_words(host.stream)}", host._replace(step=host.stream), ""
        if host.step is not None:
            if opened or not self.rules.discard:
                late = tick >= host.begun + TTL
                kept = host._replace(step=None, token=host.step)
                broken = "a step that ended without a lease was kept" if late else ""
                yield "ends the step and keeps its token", kept, broken
            else:
                yield "ends the step without a lease and discards it", host._replace(step=None), ""
        if host.token is not None and (opened or not self.rules.recheck):
            label = f"releases a token of {_words(host.token)}"
            released = host._replace(token=None)
            yield label, released, self._mistake_of_release(host, tick, office)

    def _crashed(self, host: Host) -> Host:
        return Host(
            wall=host.wall,
            steady=host.steady,
            floor=host.floor if self.rules.keeps_floor else -1,
            crashes=host.crashes + 1,
            set_back=host.set_back,
            peak=host.peak,
            ended=host.ended,
        )

    # ── properties ────────────────────────────────────────────────────────────────────────────────────
    def _mistake_of_release(self, host: Host, tick: int, office: Office) -> str:
        used = host.token or ()
        if misused := self._mistake_of_use(host, used, tick, office):
            return misused
        if any(one.stopped and tick >= one.tick + TTL for one in office.news):
            return "a token was released after the stop and the length of a lease"
        if host.acked > 0 and not self._permits(host.acked, host.digest, used):
            return "a token of an expert was released after the acknowledgement that it is gone"
        return "a token was released without a lease" if tick >= host.begun + TTL else ""

    def _mistake_of_use(self, host: Host, used: Experts, tick: int, office: Office) -> str:
        if office.branch:  # a restored register knows no better than the epoch that the host follows
            return "" if self._holds(host.digest, used, tick) else "a time bound was overrun"
        since = office.since(tick - TTL)
        if not any(set(used) <= {name for name, _ in self.content(digest)} for digest in since):
            return "a token of a forbidden expert was released after commit and the length of a lease"
        return "" if any(self._holds(digest, used, tick) for digest in since) else "a time bound was overrun"

    def _holds(self, digest: str, used: Experts, tick: int) -> bool:
        until = dict(self.content(digest))
        return all(name in until and (until[name] is None or tick < (until[name] or 0)) for name in used)

    def _permits(self, acked: int, digest: str, used: Experts) -> bool:
        """Whether the acknowledged epoch, or the one in force, which may be later, permits a set."""
        own = int(digest.split(".", maxsplit=1)[0])
        names = [{name for name, _ in self.content(f"{number}.0")} for number in range(acked, own + 1)]
        return any(set(used) <= one for one in names)

    def _mistake_of_epoch(self, host: Host, answer: Answer) -> str:
        if answer.epoch < host.peak:
            return "an epoch fell at a host"
        if host.digest and host.digest not in answer.past:
            return "a host followed a register with another past"
        return ""

    def _mistake_of_acknowledgement(self, host: Host) -> str:
        permitted = {name for name, _ in self.content(f"{host.acked}.0")} if host.acked > 0 else set(EXPERTS)
        for used in (host.stream, host.step, host.token):
            if host.acked >= host.epoch and not set(used or ()) <= permitted:
                return "an epoch was acknowledged before its masks held"
        return ""


def _words(experts: Experts) -> str:
    return " and ".join(("the base", *experts))


@cache
def _answer(question: Question, news: News) -> Answer:
    """The office receives a question when it is sent (later only tightens time bounds) and reads the news."""
    past = news.past
    seen = past[question.epoch - 1] if 0 < question.epoch <= len(past) else ""
    return Answer(question, len(past), past[-1], seen, news.stopped, past)


@cache
def _news(answer: Answer) -> EpochNews:
    return EpochNews(
        epoch=answer.epoch,
        snapshot_digest=answer.digest,
        lease_s=0.0,
        office_at_us=0,
        seen_digest=answer.seen_digest,
    )


@cache
def _roster(epoch: int, digest: str, content: Content, at: int) -> Roster:
    live = [(name, until) for name, until in content if until is None or at < until]
    served = Served(
        deployment="d",
        epoch=epoch,
        base_digest="base",
        experts=tuple(name for name, _ in live),
        names={},
        top_k=1,
        composition_digest=digest,
        valid_until_us=min((until for _, until in live if until is not None), default=None),
    )
    return Roster(epoch=epoch, snapshot_digest=digest, served={"d": served})


@cache
def _plan(epoch: int, digest: str, content: Content, at: int, stream: Experts) -> Plan:
    running = Running(key="s", deployment="d", experts=stream, top_k=1)
    return make_plan(_roster(epoch, digest, content, at), EXPERTS, [running])


def _with_drift(facts: GateFacts, ppm: int) -> GateFacts:
    lease, office = replace(facts.lease, drift_ppm=ppm), replace(facts.office, drift_ppm=ppm)
    return replace(facts, lease=lease, office=office)


def _moved(host: Host, boot: int, true: int) -> Host:
    """The host with its readings of the boot clock and of the true one (and its wall clock) moved."""
    if not boot and not true:
        return host
    facts = host.facts
    lease, watch, office = facts.lease, facts.watch, facts.office
    if lease.sent_us is not None:
        lease = replace(lease, sent_us=lease.sent_us + boot)
    if office.received_us:
        office = replace(office, received_us=office.received_us + true, sent_us=office.sent_us + boot)
    watch = replace(watch, highest_us=watch.highest_us + true)
    return host._replace(
        facts=replace(facts, lease=lease, watch=watch, office=office),
        network=frozenset(
            one._replace(sent=one.sent + boot, true=one.true + true) if one.sent else one
            for one in host.network
        ),
        hearing=_moved_answer(host.hearing, boot, true),
        begun=host.begun + true if host.begun else 0,
    )


def _aged(question: Question, sent: int, tick: int) -> Question:
    """A question that renews no lease any more is as good as one that was sent long ago."""
    lease = Lease(ttl_us=TTL, drift_ppm=DRIFT_PPM)
    if question.sent > sent and tick - question.sent < lease.held_us:
        return question
    return question._replace(sent=0, true=0)


def _moved_answer(answer: Answer | None, boot: int, true: int) -> Answer | None:
    if answer is None or not answer.question.sent:
        return answer
    question = answer.question
    return answer._replace(question=question._replace(sent=question.sent + boot, true=question.true + true))

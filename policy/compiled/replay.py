# SPDX-License-Identifier: Apache-2.0
"""Logged questions asked of two snapshots: who gains and who loses which expert.

The signature that previews build on is ``replay(before, after, questions)``: it yields one ``Replayed`` for
each logged question, in their order. What differs between equal questions is the moment, and time changes an
answer only where a consent or grant that speaks to the use begins or is over. So equal questions whose
moments lie between the same two of those share one answer; nothing else is shared. It reads no log and
explains nothing: whoever wants the reasons of one question asks ``policy.deciding.composition`` about it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from policy.compiled.composer import Compiled, Composed
from policy.deciding.members import Member
from policy.deciding.questions import Asked, Question, resolve
from policy.errors import UnknownDeployment


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """One logged question with both answers.

    ``at_us`` in the answers may be of an equal question at another moment that has the same answer.

    Attributes:
        question: as it was logged.
        before: what the first snapshot answers; None where it does not hold the deployment.
        after: the same of the second.
        gained: members that only the second has, by bundle digest.
        lost: members that only the first has, by bundle digest.
    """

    question: Question
    before: Composed | None
    after: Composed | None
    gained: tuple[Member, ...]
    lost: tuple[Member, ...]

    @property
    def flips(self) -> bool:
        """Whether one of both answers at all and the other not."""
        return _answers(self.before) is not _answers(self.after)


def replay(before: Compiled, after: Compiled, questions: Iterable[Question]) -> Iterator[Replayed]:
    """Asks each logged question of two snapshots, at its own moment.

    Args:
        before: what holds now.
        after: what is drafted.
        questions: as the decision log holds them; deployments are filled in from each snapshot.

    Raises:
        IncompleteQuestion: a question names no deployment and leaves out what is needed.
    """
    old, new = _Side(before), _Side(after)
    compared: dict[tuple[int, int], tuple[tuple[Member, ...], tuple[Member, ...]]] = {}
    for question in questions:
        one, other = old.answer(question), new.answer(question)
        # Both sides keep their answers as long as this runs, so their ids name them.
        key = id(one), id(other)
        if key not in compared:
            compared[key] = _difference(one, other), _difference(other, one)
        lost, gained = compared[key]
        yield Replayed(question=question, before=one, after=other, gained=gained, lost=lost)


class _Side:
    """One snapshot with the answers that equal questions share."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._uses: dict[tuple[object, ...], _Use | None] = {}

    def answer(self, question: Question) -> Composed | None:
        said = question.__dict__
        key = tuple([said[name] for name in _TIMELESS])
        try:
            use = self._uses[key]
        except KeyError:
            use = self._uses[key] = self._resolved(question)
        return None if use is None else use.at(self._compiled, question.at_us)

    def _resolved(self, question: Question) -> _Use | None:
        try:
            asked = resolve(self._compiled.snapshot, question)
        except UnknownDeployment:
            return None
        return _Use(asked, self._compiled.moments_us(asked))


_TIMELESS = tuple(name for name in Question.model_fields if name != "at_us")


class _Use:
    """One use, with its answer for each piece of time that was asked about."""

    def __init__(self, asked: Asked, moments_us: list[int]) -> None:
        self._asked = asked
        self._moments_us = moments_us
        self._answers: dict[int, Composed] = {}

    def at(self, compiled: Compiled, at_us: int) -> Composed:
        period = bisect_right(self._moments_us, at_us)
        answer = self._answers.get(period)
        if answer is None:
            asked = self._asked.model_copy(update={"at_us": at_us})
            answer = self._answers[period] = compiled.compose(asked)
        return answer


def _answers(composed: Composed | None) -> bool:
    return composed is not None and composed.verdict == "permit"


def _difference(some: Composed | None, others: Composed | None) -> tuple[Member, ...]:
    """Members of the first answer that the second has not."""
    if some is None:
        return ()
    there = frozenset[str]() if others is None else {member.bundle_digest for member in others.members}
    return tuple(member for member in some.members if member.bundle_digest not in there)

# SPDX-License-Identifier: Apache-2.0
"""What gates write down: ways out, chosen licenses, obligations, and the end of the yes.

It decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Final, NamedTuple

from policy.deciding.licenses import Said, Subject, Terms, joined
from policy.deciding.matching import FOREVER_US
from policy.deciding.questions import LicenseChoice
from policy.deciding.reasons import (
    NOTHING,
    NearestMiss,
    Obligation,
    Weighed,
    obligation,
    obligations_in_order,
    reason,
    weighed,
)
from policy.facts.terms import Gate
from policy.facts.values import built


@dataclass(frozen=True, kw_only=True, eq=False)
class Licensed:
    """What the licenses of one or several things say to a use.

    Attributes:
        said: for and against.
        misses: what would open the gate.
        choices: the licenses that a yes rests on.
        obligations: that they ask for.
        burdens: licenses whose terms can clash with others', each with the id of what it licenses.
    """

    said: Weighed = NOTHING
    misses: tuple[NearestMiss, ...] = ()
    choices: tuple[LicenseChoice, ...] = ()
    obligations: tuple[Obligation, ...] = ()
    burdens: tuple[tuple[Said, str], ...] = ()

    @cached_property
    def terms(self) -> Terms:
        """What all burdens ask together."""
        return joined(said.terms(subject) for said, subject in self.burdens)


UNLICENSED: Final = Licensed()


class Licensable(NamedTuple):
    """A thing under a license: what it is, the expression, and who could give it another one."""

    subject: Subject
    expression: str
    owner: str


def denied_by(said: Said, thing: Licensable, use: str) -> Licensed:
    """What the license of one thing says that does not permit the use, which is given in words."""
    subject, expression, owner = thing
    need = f"{subject.name} needs other or reviewed terms instead of {expression}: {use}."
    why = weighed(said.denials_of(subject))
    return Licensed(said=why, misses=(miss("license", owner, need, subject.id),))


@lru_cache(maxsize=16_384)
def permitted_by(said: Said, thing: Licensable) -> Licensed:
    """What a license that permits leaves behind for one thing; one object, from one question to the next."""
    (subject, name), expression, _ = thing
    permits = reason("license_permits", subject, *said.chosen, subject=name, chosen=" AND ".join(said.chosen))
    choice = {"subject": subject, "expression": expression, "chosen": said.chosen}
    return Licensed(
        said=weighed([permits]),
        choices=(built(LicenseChoice, choice),),
        obligations=tuple(obligation(kind, key, subject, text) for kind, key, text in said.owed),
        burdens=((said, subject),) if said.can_clash else (),
    )


def licensed_together(several: Sequence[Licensed]) -> Licensed:
    """What several say together, in order."""
    return Licensed(
        said=weighed([one for each in several for one in each.said.reasons]),
        misses=tuple(one for each in several for one in each.misses),
        choices=tuple(one for each in several for one in each.choices),
        obligations=obligations_in_order(one for each in several for one in each.obligations),
        burdens=tuple(one for each in several for one in each.burdens),
    )


@dataclass(kw_only=True, slots=True)
class Findings:
    """What the gates wrote down about one expert, beside their reasons.

    Attributes:
        misses: what would open a gate.
        licensed: what the licenses say.
        ends_us: the end of the yes, exclusive.
    """

    misses: list[NearestMiss] = field(default_factory=list)
    licensed: Licensed = UNLICENSED
    ends_us: int = FOREVER_US


def miss(
    gate: Gate, ask: str, sentence: str, fact_id: str | None = None, differs: tuple[str, ...] = ()
) -> NearestMiss:
    """What would open a gate.

    Args:
        gate: which.
        ask: the tenant, or ``compliance``, whose word is needed.
        sentence: what is needed.
        fact_id: the fact that came closest.
        differs: the fields in which it falls short.
    """
    fields = {"gate": gate, "sentence": sentence, "ask": ask, "fact_id": fact_id, "differs": differs}
    return built(NearestMiss, fields)

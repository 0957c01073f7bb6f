# SPDX-License-Identifier: Apache-2.0
"""What gates write down: ways out, chosen licenses, obligations, and the end of the yes.

It decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Final

from policy.deciding.licenses import Owed, Said, Subject, Terms, joined
from policy.deciding.matching import FOREVER_US
from policy.deciding.questions import LicenseChoice
from policy.deciding.reasons import (
    NOTHING,
    NearestMiss,
    Obligation,
    Reason,
    Weighed,
    obligation,
    obligations_in_order,
    reason,
    weighed,
)
from policy.facts.terms import Gate
from policy.facts.values import built


@dataclass(frozen=True, kw_only=True)
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


def licensed(said: Said, subject: Subject, expression: str, owner: str, use: str) -> Licensed:
    """What the license of one thing says.

    Args:
        said: by its expression.
        subject: what it is the license of.
        expression: the license.
        owner: who could give another one.
        use: what is asked, in words.
    """
    if said.permits:
        permitted, choice, obligations = _permitted(*subject, expression, said.chosen, said.owed)
        burdens = ((said, subject.id),) if said.can_clash else ()
        return Licensed(
            said=weighed([permitted]), choices=(choice,), obligations=obligations, burdens=burdens
        )
    need = f"{subject.name} needs other or reviewed terms instead of {expression}: {use}."
    return Licensed(
        said=weighed(said.denials_of(subject)), misses=(miss("license", owner, need, subject.id),)
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


@lru_cache(maxsize=16_384)
def _permitted(
    subject: str, name: str, expression: str, chosen: tuple[str, ...], owed: tuple[Owed, ...]
) -> tuple[Reason, LicenseChoice, tuple[Obligation, ...]]:
    """What a license that permits leaves behind for one thing; the same from one question to the next."""
    permits = reason("license_permits", subject, *chosen, subject=name, chosen=" AND ".join(chosen))
    choice = built(LicenseChoice, {"subject": subject, "expression": expression, "chosen": chosen})
    return permits, choice, tuple(obligation(kind, key, subject, text) for kind, key, text in owed)


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

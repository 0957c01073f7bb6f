# SPDX-License-Identifier: Apache-2.0
"""What gates write down: reasons, ways out, chosen licenses, obligations, and the end of the yes.

It decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from policy.deciding.licenses import Owed, Said, Subject, Terms, joined
from policy.deciding.matching import FOREVER_US
from policy.deciding.questions import LicenseChoice
from policy.deciding.reasons import NearestMiss, Obligation, Reason, obligation, reason
from policy.facts.terms import Gate
from policy.facts.values import built


@dataclass(kw_only=True, slots=True)
class Findings:
    """What the gates wrote down about one expert, or about what is the same for all.

    Attributes:
        reasons: for and against.
        misses: what would open a gate.
        choices: the licenses that a yes rests on.
        obligations: that they ask for.
        burdens: licenses whose terms can clash with others', each with the id of what it licenses.
        ends_us: the end of the yes, exclusive.
    """

    reasons: list[Reason] = field(default_factory=list)
    misses: list[NearestMiss] = field(default_factory=list)
    choices: list[LicenseChoice] = field(default_factory=list)
    obligations: list[Obligation] = field(default_factory=list)
    burdens: list[tuple[Said, str]] = field(default_factory=list)
    ends_us: int = FOREVER_US

    def say(self, one: Reason) -> None:
        """Adds a reason."""
        self.reasons.append(one)

    def until(self, at_us: int) -> None:
        """Ends the yes at this moment at the latest."""
        self.ends_us = min(self.ends_us, at_us)

    def miss(self, *misses: NearestMiss) -> None:
        """Adds what would open a gate, each once."""
        for one in misses:
            fields = vars(one)
            if all(fields != vars(other) for other in self.misses):
                self.misses.append(one)

    def license(self, said: Said, subject: Subject, expression: str) -> None:
        """Adds what a license asks for that permits the use."""
        permitted, choice, obligations = _permitted(*subject, expression, said.chosen, said.owed)
        self.reasons.append(permitted)
        self.choices.append(choice)
        self.obligations += obligations
        if said.can_clash:
            self.burdens.append((said, subject.id))

    def terms(self) -> Terms:
        """What all burdens ask together."""
        return joined(said.terms(subject) for said, subject in self.burdens)

    def join(self, others: Findings) -> None:
        """Adds all that was found elsewhere."""
        self.reasons += others.reasons
        if others.misses:
            self.miss(*others.misses)
        self.choices += others.choices
        self.obligations += others.obligations
        self.burdens += others.burdens
        self.until(others.ends_us)


@lru_cache(maxsize=16_384)
def _permitted(
    subject: str, name: str, expression: str, chosen: tuple[str, ...], owed: tuple[Owed, ...]
) -> tuple[Reason, LicenseChoice, tuple[Obligation, ...]]:
    """What a license that permits leaves behind for one thing; the same from one question to the next."""
    permits = reason("license_permits", subject, *chosen, subject=name, chosen=" AND ".join(chosen))
    choice = built(LicenseChoice, {"subject": subject, "expression": expression, "chosen": chosen})
    return permits, choice, tuple(obligation(kind, key, subject, text) for kind, key, text in owed)


def miss(gate: Gate, ask: str, sentence: str, fact_id: str | None = None, *differs: str) -> NearestMiss:
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

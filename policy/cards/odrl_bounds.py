# SPDX-License-Identifier: Apache-2.0
"""The bounds of ODRL rules in our words: purposes, places, recipients, moments, commercial use.

A bound that has no word here is ``Misunderstood``; what follows from that is for the rule to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from policy.cards.duo import find_term
from policy.cards.reading import field as field_of
from policy.cards.reading import last_part, listed, text_of
from policy.cards.times import moment_us
from policy.facts.terms import ANY
from policy.facts.vocabulary import read_data, vocabulary

URN: Final = "urn:expert-marketplace:"
_ONE_OF: Final = frozenset({"eq", "isAnyOf", "isPartOf", "isA"})


class Misunderstood(Exception):
    """A part that has no word here; the rule that holds it says what follows."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what)
        self.what = what
        self.why = why


@dataclass(kw_only=True, slots=True)
class Use:
    """The bounds of one rule, as lists of alternatives."""

    purposes: list[str] = field(default_factory=lambda: [ANY])
    regions: list[str] = field(default_factory=lambda: [ANY])
    recipients: list[str] = field(default_factory=lambda: [ANY])
    commercial: bool | None = None
    from_us: int | None = None
    until_us: int | None = None


def narrow(use: Use, constraint: object, *, within: bool) -> None:
    """Takes one bound over; ``within`` lets a broader word of ours stand for a narrower one of theirs."""
    if not isinstance(constraint, Mapping):
        raise Misunderstood("constraint", "it is a reference, and nothing is fetched")
    left = last_part(text_of(field_of(constraint, "leftOperand")) or "")
    operator = last_part(text_of(field_of(constraint, "operator")) or "")
    right = listed(field_of(constraint, "rightOperand"))
    if left == "dateTime" and len(right) == 1:
        _narrow_time(use, operator, right[0])
    elif left == "commercial" and operator == "eq" and right in ([True], [False]):
        use.commercial = bool(right[0])
    elif operator not in _ONE_OF or not right:
        raise Misunderstood(f"{left or 'constraint'} {operator}"[:200], "such a bound has no word here")
    elif left == "purpose":
        use.purposes = met(use.purposes, [_purpose(text, within=within) for text in _whole(right)])
    elif left == "spatial":
        use.regions = met(use.regions, [_region(text) for text in _whole(right)])
    elif left == "recipient":
        use.recipients = met(use.recipients, [tenant(text) for text in right])
    else:
        raise Misunderstood(left[:200] or "constraint", "such a bound has no word here")


def met(known: list[str], said: list[str]) -> list[str]:
    """Two bounds on the same thing have no common word here, unless they are equal."""
    if known not in ([ANY], said):
        raise Misunderstood("constraint", "two bounds on the same thing have no word here")
    return list(dict.fromkeys(said))


def _whole(values: list[object]) -> Iterator[str]:
    for value in values:
        if (text := text_of(value)) is None:
            raise Misunderstood("rightOperand", "a value is no text")
        yield text


def _narrow_time(use: Use, operator: str, value: object) -> None:
    at_us = moment_us(text_of(value) or "")
    if at_us is None:
        raise Misunderstood("dateTime", "it is no moment with an offset")
    if operator in {"lt", "lteq"}:
        end_us = at_us + (operator == "lteq")
        use.until_us = end_us if use.until_us is None else min(use.until_us, end_us)
    elif operator in {"gt", "gteq"}:
        start_us = at_us + (operator == "gt")
        use.from_us = start_us if use.from_us is None else max(use.from_us, start_us)
    else:
        raise Misunderstood(f"dateTime {operator}"[:200], "such a bound has no word here")


def _purpose(text: str, *, within: bool) -> str:
    words, name = vocabulary().purposes, last_part(text)
    if (text.startswith(f"{URN}purpose:") or text == name) and name in (*words, ANY):
        return name
    if (term := find_term(text)) is not None and len(term.permits) == 1:
        return term.permits[0]
    known = read_data("dpv-1.json")
    if text.startswith(("https://w3id.org/dpv#", "dpv:", "http://www.w3.org/ns/dpv#")):
        if name in known["exact"]:
            return str(known["exact"][name])
        if within and name in known["within"]:
            return str(known["within"][name])
    raise Misunderstood(f"purpose {text[:200]}", "the purpose has no word here")


def _region(text: str) -> str:
    name = last_part(text).lower()
    if name in vocabulary().regions:
        return name
    raise Misunderstood(f"region {text[:200]}", "the region has no word here")


def tenant(value: object) -> str:
    """The tenant that a party or recipient names.

    Raises:
        Misunderstood: the text is no tenant's name.
    """
    text = text_of(value) or ""
    name = text.removeprefix(f"{URN}tenant:")
    if name == ANY or (
        0 < len(name) <= 63 and name.replace("-", "").isalnum() and name == name.lower() and name.isascii()
    ):
        return name
    raise Misunderstood(f"recipient {text[:200]}", "the recipient is no tenant's name")


def is_tenant(value: object) -> bool:
    """Whether a party or recipient is named as a tenant."""
    try:
        return bool(tenant(value))
    except Misunderstood:
        return False

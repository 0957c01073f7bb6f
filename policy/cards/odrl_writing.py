# SPDX-License-Identifier: Apache-2.0
"""Consents and prohibitions as ODRL 2.2 policies, in words of our own that read back without loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from policy.cards.odrl_bounds import URN
from policy.cards.times import text_of_moment
from policy.facts.terms import ANY
from policy.records.items import ConsentGive, ForbidUse

CONTEXT: Final = "http://www.w3.org/ns/odrl.jsonld"


def policy_of(consents: list[ConsentGive | ForbidUse], *, uid: str, target: str) -> dict[str, Any]:
    """Writes permits and forbids as one policy, which reads back as the same.

    Args:
        consents: what is permitted and forbidden.
        uid: names the policy.
        target: what it is about.
    """
    rules: dict[str, list[dict[str, Any]]] = {"permission": [], "prohibition": []}
    for one in consents:
        kind = "permission" if isinstance(one, ConsentGive) else "prohibition"
        rules[kind].append(
            {"target": target, "action": f"{URN}action:{one.action}", "constraint": list(_constraints(one))}
        )
    return {
        "@context": CONTEXT,
        "@type": "Set",
        "uid": uid,
        "profile": f"{URN}profile",
        "conflict": "prohibit",
        **{kind: found for kind, found in rules.items() if found},
    }


def _constraints(one: ConsentGive | ForbidUse) -> Iterator[dict[str, Any]]:
    yield _constraint("purpose", f"{URN}purpose:{one.purpose}")
    if one.region != ANY:
        yield _constraint("spatial", f"{URN}region:{one.region}")
    if one.recipient != ANY:
        yield _constraint("recipient", f"{URN}tenant:{one.recipient}")
    yield _constraint(f"{URN}commercial", one.commercial)
    for operator, at_us in (("gteq", one.valid_from_us), ("lt", one.valid_until_us)):
        if at_us is not None:
            value = {"@value": text_of_moment(at_us), "@type": "xsd:dateTime"}
            yield {"leftOperand": "dateTime", "operator": operator, "rightOperand": value}


def _constraint(left: str, right: object) -> dict[str, Any]:
    return {"leftOperand": left, "operator": "eq", "rightOperand": right}

# SPDX-License-Identifier: Apache-2.0
"""ODRL 2.2 policies as drafts, and consents as ODRL.

Permissions and prohibitions become permits and forbids; a prohibition always wins, whatever ``conflict``
says. What cannot be expressed is listed. It narrows nothing silently: a permission with a part that is not
understood is left out, a prohibition with one is taken without that part (it then forbids more, and a note
says so), and one whose act or purpose is not understood withholds every permit of its policy. The standard
leaves commercial use open where nothing is said; here it has to be said.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from policy.cards.drafts import Drafts, NotImported
from policy.cards.duo import Scope, find_term
from policy.cards.errors import CardRefused, CardTooLarge
from policy.cards.reading import Node, last_part, listed, text_of, texts_of
from policy.cards.reading import field as field_of
from policy.cards.times import moment_us, text_of_moment
from policy.items import ConsentGive, ForbidUse
from policy.terms import ACTIONS, ANY
from policy.vocabulary import read_data, vocabulary

URN: Final = "urn:expert-marketplace:"
CONTEXT: Final = "http://www.w3.org/ns/odrl.jsonld"
MAX_DRAFTS: Final = 50
_TYPES: Final = frozenset({"Policy", "Set", "Offer", "Agreement"})
_ACTS: Final[Mapping[str, str]] = {
    "use": ANY,
    "execute": "infer",
    "read": "view_card",
    "display": "view_card",
    "derive": "fine_tune",
    "modify": "fine_tune",
    "distribute": "export_weights",
    "transfer": "export_weights",
}
_BANNED: Final[Mapping[str, str]] = {**_ACTS, "reproduce": ANY, "aggregate": ANY}
_PARTS: Final = frozenset(
    {
        "@type",
        "type",
        "@id",
        "id",
        "uid",
        "action",
        "target",
        "assigner",
        "assignee",
        "constraint",
        "refinement",
    }
    | {"duty"}
)
_HEAD: Final = frozenset(
    {"@context", "@type", "type", "@id", "id", "uid", "profile", "conflict", "inheritFrom", "permission"}
    | {"prohibition", "obligation", "duty", "target", "assigner"}
)
_COMMERCIAL: Final = frozenset({"commercialize", "CommercialUse", "sell"})
_ONE_OF: Final = frozenset({"eq", "isAnyOf", "isPartOf", "isA"})


class _Misunderstood(Exception):
    """A part that has no word here; never leaves this file."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what)
        self.what = what
        self.why = why


@dataclass(kw_only=True, slots=True)
class _Use:
    """The bounds of one rule, as lists of alternatives."""

    purposes: list[str] = field(default_factory=lambda: [ANY])
    regions: list[str] = field(default_factory=lambda: [ANY])
    recipients: list[str] = field(default_factory=lambda: [ANY])
    commercial: bool | None = None
    from_us: int | None = None
    until_us: int | None = None


def drafts_of_policy(policy: Node, scope: Scope, where: str = "ODRL") -> Drafts:
    """Reads one policy.

    Args:
        policy: a checked document (``policy.cards.reading.check_document``) or a part of one.
        scope: what the drafts are about; its recipient and region bound what the policy leaves open.
        where: names the policy in what is not imported.

    Raises:
        CardRefused: it is no policy, or says one thing twice.
        CardTooLarge: it multiplies into more drafts than are read.
    """
    kinds = {last_part(text) for text in texts_of(field_of(policy, "type", "@type"))}
    if not kinds & _TYPES:
        raise CardRefused(f"The policy is none of {', '.join(sorted(_TYPES))}.", types=sorted(kinds)[:5])
    drafts = Drafts()
    banned = False
    for rule in listed(field_of(policy, "prohibition")):
        found, is_commercial = _prohibition(rule, scope, where)
        drafts, banned = drafts.joined(found), banned or is_commercial
    unread = bool([one for one in drafts.not_imported if one.why.startswith("prohibits")])
    for rule in listed(field_of(policy, "permission")):
        drafts = drafts.joined(_permission(rule, scope, where, banned=banned))
    if len(drafts.consents) + len(drafts.forbids) > MAX_DRAFTS:
        raise CardTooLarge(f"A policy may become {MAX_DRAFTS} drafts. Split it.", max_drafts=MAX_DRAFTS)
    duties = (*listed(field_of(policy, "obligation")), *listed(field_of(policy, "duty")))
    drafts = _with_duties(drafts, duties, where)
    for name, why in (
        ("inheritFrom", "the policy that it inherits from is not read"),
        ("profile", "a profile may give its words another meaning"),
    ):
        if field_of(policy, name) is not None and not _own_profile(name, field_of(policy, name)):
            drafts = _without_permits(drafts, where, name, why)
    for name in policy:
        if last_part(name) not in _HEAD:
            drafts = _without_permits(
                drafts, where, name[:200], "the policy has a part that is not known here"
            )
    return drafts.withheld(where, "a prohibition beside it could not be read") if unread else drafts


def _without_permits(drafts: Drafts, where: str, what: str, why: str) -> Drafts:
    said = NotImported(where=where, what=what, why=why)
    return drafts.joined(Drafts(not_imported=(said,))).withheld(where, why)


def _own_profile(name: str, value: object) -> bool:
    return name == "profile" and all(text == f"{URN}profile" for text in texts_of(value))


def _prohibition(rule: object, scope: Scope, where: str) -> tuple[Drafts, bool]:
    """A prohibition's drafts, and whether it bans commercial use (whatever bounds it has)."""
    try:
        node = _node(rule)
        texts = _acts(node)
        is_commercial = any(last_part(text) in _COMMERCIAL for text in texts)
        acts = [_action(text, _BANNED) for text in texts if last_part(text) not in _COMMERCIAL]
    except _Misunderstood as error:
        said = NotImported(where=where, what=error.what, why=f"prohibits, but {error.why}")
        return Drafts(not_imported=(said,)), False
    use, notes = _Use(), []
    for constraint in listed(field_of(node, "constraint", "refinement")):
        try:
            _narrow(use, constraint, within=True)
        except _Misunderstood as error:
            notes.append(f"The prohibition of {error.what} is taken without that bound: {error.why}.")
    if parties := listed(field_of(node, "assignee")):
        named = all(map(_is_tenant, parties)) and use.recipients == [ANY]
        use.recipients = [_tenant(one) for one in parties] if named else [ANY]
    forbids = tuple(
        ForbidUse(**_fields(scope, use), action=act, purpose=purpose, region=region, recipient=recipient)
        for act, purpose, region, recipient in _product(acts, use)
    )
    return Drafts(forbids=forbids, notes=tuple(notes)), is_commercial


def _permission(rule: object, scope: Scope, where: str, *, banned: bool) -> Drafts:
    use = _Use()
    try:
        node = _node(rule)
        _check_fields(node)
        for constraint in listed(field_of(node, "constraint", "refinement")):
            _narrow(use, constraint, within=False)
        if parties := listed(field_of(node, "assignee")):
            use.recipients = _met(use.recipients, [_tenant(one) for one in parties])
        texts = _acts(node)
        acts = [_action(text, _ACTS) for text in texts if last_part(text) not in _COMMERCIAL]
        _bound(use, scope)
    except _Misunderstood as error:
        return Drafts(not_imported=(NotImported(where=where, what=error.what, why=error.why),))
    named = any(last_part(text) in _COMMERCIAL for text in texts)
    silent = use.commercial is None and not named and not banned
    use.commercial = not banned and (bool(use.commercial) or named)
    notes = ("Commercial use is not permitted, since the policy does not name it.",) if silent else ()
    consents = tuple(
        ConsentGive(
            **_fields(scope, use),
            action=act,
            purpose="any" if purpose == ANY else purpose,
            region=region,
            recipient=recipient,
        )
        for act, purpose, region, recipient in _product(acts or [ANY], use)
    )
    return _with_duties(Drafts(consents=consents, notes=notes), field_of(node, "duty"), where)


def _fields(scope: Scope, use: _Use) -> dict[str, Any]:
    return {
        "expert_id": scope.expert_id,
        "dataset_id": scope.dataset_id,
        "commercial": bool(use.commercial),
        "valid_from_us": use.from_us,
        "valid_until_us": use.until_us,
    }


def _check_fields(node: Node) -> None:
    """Refuses a permission with a part that is not read: it may be a limit."""
    for name in node:
        if last_part(name) not in _PARTS:
            raise _Misunderstood(name[:200], "the permission has a part that is not known here")


def _bound(use: _Use, scope: Scope) -> None:
    """Lets what the owner said narrow what the policy leaves open; where both speak they have to agree."""
    for name, said in (("recipients", scope.recipient), ("regions", scope.region)):
        stated = getattr(use, name)
        if said != ANY and stated not in ([ANY], [said]):
            raise _Misunderstood(name, "the policy names others than the owner")
        if said != ANY:
            setattr(use, name, [said])
    if scope.until_us is not None:
        use.until_us = min(scope.until_us, use.until_us if use.until_us is not None else scope.until_us)


def _with_duties(drafts: Drafts, duties: object, where: str) -> Drafts:
    """Plain duties become conditions; one with bounds of its own withholds what it belongs to."""
    conditions = []
    for duty in listed(duties):
        names = _plain_acts(duty)
        if not names or (
            isinstance(duty, Mapping) and field_of(duty, "constraint", "refinement") is not None
        ):
            said = NotImported(where=where, what="duty", why="a duty with bounds has no word here")
            return drafts.joined(Drafts(not_imported=(said,))).withheld(
                where, "a duty on it has no word here"
            )
        conditions += [f"Duty: {last_part(name)[:100]}." for name in names]
    return drafts.joined(Drafts(conditions=tuple(conditions)))


def _plain_acts(duty: object) -> list[str]:
    return list(texts_of(field_of(duty, "action"))) if isinstance(duty, Mapping) else list(texts_of(duty))


def _node(rule: object) -> Node:
    if not isinstance(rule, Mapping):
        raise _Misunderstood("rule", "it is a reference, and nothing is fetched")
    return rule


def _acts(node: Node) -> list[str]:
    texts = []
    for one in listed(field_of(node, "action")):
        text = text_of(one)
        if text is None or (isinstance(one, Mapping) and field_of(one, "refinement") is not None):
            raise _Misunderstood("action", "an act with bounds of its own has no word here")
        texts.append(text)
    if not texts:
        raise _Misunderstood("action", "no act is named")
    return texts


def _action(text: str, known: Mapping[str, str]) -> str:
    """Our word for an act."""
    if text.startswith(f"{URN}action:") and (name := text.rpartition(":")[2]) in (*ACTIONS, ANY):
        return name
    if (name := last_part(text)) in known:
        return known[name]
    raise _Misunderstood(f"action {text[:200]}", "the act has no word here")


def _narrow(use: _Use, constraint: object, *, within: bool) -> None:
    """Takes one bound over; ``within`` lets a broader word of ours stand for a narrower one of theirs."""
    if not isinstance(constraint, Mapping):
        raise _Misunderstood("constraint", "it is a reference, and nothing is fetched")
    left = last_part(text_of(field_of(constraint, "leftOperand")) or "")
    operator = last_part(text_of(field_of(constraint, "operator")) or "")
    right = listed(field_of(constraint, "rightOperand"))
    if left == "dateTime" and len(right) == 1:
        _narrow_time(use, operator, right[0])
    elif left == "commercial" and operator == "eq" and right in ([True], [False]):
        use.commercial = bool(right[0])
    elif operator not in _ONE_OF or not right:
        raise _Misunderstood(f"{left or 'constraint'} {operator}"[:200], "such a bound has no word here")
    elif left == "purpose":
        use.purposes = _met(use.purposes, [_purpose(text, within=within) for text in _whole(right)])
    elif left == "spatial":
        use.regions = _met(use.regions, [_region(text) for text in _whole(right)])
    elif left == "recipient":
        use.recipients = _met(use.recipients, [_tenant(text) for text in right])
    else:
        raise _Misunderstood(left[:200] or "constraint", "such a bound has no word here")


def _met(known: list[str], said: list[str]) -> list[str]:
    """Two bounds on the same thing have no common word here, unless they are equal."""
    if known not in ([ANY], said):
        raise _Misunderstood("constraint", "two bounds on the same thing have no word here")
    return list(dict.fromkeys(said))


def _whole(values: list[object]) -> Iterator[str]:
    for value in values:
        if (text := text_of(value)) is None:
            raise _Misunderstood("rightOperand", "a value is no text")
        yield text


def _narrow_time(use: _Use, operator: str, value: object) -> None:
    at_us = moment_us(text_of(value) or "")
    if at_us is None:
        raise _Misunderstood("dateTime", "it is no moment with an offset")
    if operator in {"lt", "lteq"}:
        end_us = at_us + (operator == "lteq")
        use.until_us = end_us if use.until_us is None else min(use.until_us, end_us)
    elif operator in {"gt", "gteq"}:
        start_us = at_us + (operator == "gt")
        use.from_us = start_us if use.from_us is None else max(use.from_us, start_us)
    else:
        raise _Misunderstood(f"dateTime {operator}"[:200], "such a bound has no word here")


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
    raise _Misunderstood(f"purpose {text[:200]}", "the purpose has no word here")


def _region(text: str) -> str:
    name = last_part(text).lower()
    if name in vocabulary().regions:
        return name
    raise _Misunderstood(f"region {text[:200]}", "the region has no word here")


def _tenant(value: object) -> str:
    text = text_of(value) or ""
    name = text.removeprefix(f"{URN}tenant:")
    if name == ANY or (
        0 < len(name) <= 63 and name.replace("-", "").isalnum() and name == name.lower() and name.isascii()
    ):
        return name
    raise _Misunderstood(f"recipient {text[:200]}", "the recipient is no tenant's name")


def _is_tenant(value: object) -> bool:
    try:
        return bool(_tenant(value))
    except _Misunderstood:
        return False


def _product(acts: list[str], use: _Use) -> list[tuple[str, str, str, str]]:
    lists = (acts, use.purposes, use.regions, use.recipients)
    size = 1
    for one in lists:
        size *= len(one)
    if size > MAX_DRAFTS:
        raise CardTooLarge(f"A policy may become {MAX_DRAFTS} drafts. Split it.", max_drafts=MAX_DRAFTS)
    return list(itertools.product(*lists))


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

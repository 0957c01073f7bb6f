# SPDX-License-Identifier: Apache-2.0
"""ODRL 2.2 policies as drafts.

Permissions and prohibitions become permits and forbids; a prohibition always wins, whatever ``conflict``
says. What cannot be expressed is listed. It narrows nothing silently: a permission with a part that is not
understood is left out, a prohibition with one is taken without that part (it then forbids more, and a note
says so), and one whose act or purpose is not understood withholds every permit of its policy. The standard
leaves commercial use open where nothing is said; here it has to be said.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Final

from policy.cards.drafts import Drafts, NotImported
from policy.cards.duo import Scope
from policy.cards.errors import CardRefused, CardTooLarge
from policy.cards.odrl_bounds import URN, Misunderstood, Use, is_tenant, met, narrow, tenant
from policy.cards.reading import Node, last_part, listed, text_of, texts_of
from policy.cards.reading import field as field_of
from policy.facts.terms import ACTIONS, ANY
from policy.records.items import ConsentGive, ForbidUse

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
    if len(_targets(policy)) > 1:
        drafts = _without_permits(drafts, where, "target", "its rules are about several things")
    for name in policy:
        if last_part(name) not in _HEAD:
            drafts = _without_permits(
                drafts, where, name[:200], "the policy has a part that is not known here"
            )
    return drafts.withheld(where, "a prohibition beside it could not be read") if unread else drafts


def _targets(policy: Node) -> set[str | None]:
    """What the rules are about; what is no plain reference counts as something of its own."""
    rules = [one for name in ("permission", "prohibition") for one in listed(field_of(policy, name))]
    holders = [policy, *(rule for rule in rules if isinstance(rule, Mapping))]
    targets = [one for holder in holders for one in listed(field_of(holder, "target"))]
    odd = [
        one
        for one in targets
        if isinstance(one, Mapping) and set(one) - {"@id", "uid", "id", "@type", "type"}
    ]
    return {text_of(one) for one in targets} | ({None, ""} if odd else set())


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
    except Misunderstood as error:
        said = NotImported(where=where, what=error.what, why=f"prohibits, but {error.why}")
        return Drafts(not_imported=(said,)), False
    use, notes = Use(), []
    for constraint in listed(field_of(node, "constraint", "refinement")):
        try:
            narrow(use, constraint, within=True)
        except Misunderstood as error:
            notes.append(f"The prohibition of {error.what} is taken without that bound: {error.why}.")
    notes += [f"The part {name[:100]} of a prohibition is not read." for name in _strange(node)]
    if parties := listed(field_of(node, "assignee")):
        named = all(map(is_tenant, parties)) and use.recipients == [ANY]
        use.recipients = [tenant(one) for one in parties] if named else [ANY]
    forbids = tuple(
        ForbidUse(**_fields(scope, use), action=act, purpose=purpose, region=region, recipient=recipient)
        for act, purpose, region, recipient in _product(acts, use)
    )
    return Drafts(forbids=forbids, notes=tuple(notes)), is_commercial


def _permission(rule: object, scope: Scope, where: str, *, banned: bool) -> Drafts:
    use = Use()
    try:
        node = _node(rule)
        _check_fields(node)
        for constraint in listed(field_of(node, "constraint", "refinement")):
            narrow(use, constraint, within=False)
        if parties := listed(field_of(node, "assignee")):
            use.recipients = met(use.recipients, [tenant(one) for one in parties])
        texts = _acts(node)
        acts = [_action(text, _ACTS) for text in texts if last_part(text) not in _COMMERCIAL]
        _bound(use, scope)
    except Misunderstood as error:
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


def _fields(scope: Scope, use: Use) -> dict[str, Any]:
    return {
        "expert_id": scope.expert_id,
        "dataset_id": scope.dataset_id,
        "commercial": bool(use.commercial),
        "valid_from_us": use.from_us,
        "valid_until_us": use.until_us,
    }


def _check_fields(node: Node) -> None:
    """Refuses a permission with a part that is not read: it may be a limit."""
    for name in _strange(node):
        raise Misunderstood(name[:200], "the permission has a part that is not known here")


def _strange(node: Node) -> list[str]:
    return [name for name in node if last_part(name) not in _PARTS]


def _bound(use: Use, scope: Scope) -> None:
    """Lets what the owner said narrow what the policy leaves open; where both speak they have to agree."""
    for name, said in (("recipients", scope.recipient), ("regions", scope.region)):
        stated = getattr(use, name)
        if said != ANY and stated not in ([ANY], [said]):
            raise Misunderstood(name, "the policy names others than the owner")
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
        raise Misunderstood("rule", "it is a reference, and nothing is fetched")
    return rule


def _acts(node: Node) -> list[str]:
    texts = []
    for one in listed(field_of(node, "action")):
        text = text_of(one)
        if text is None or (isinstance(one, Mapping) and field_of(one, "refinement") is not None):
            raise Misunderstood("action", "an act with bounds of its own has no word here")
        texts.append(text)
    if not texts:
        raise Misunderstood("action", "no act is named")
    return texts


def _action(text: str, known: Mapping[str, str]) -> str:
    """Our word for an act."""
    if text.startswith(f"{URN}action:") and (name := text.rpartition(":")[2]) in (*ACTIONS, ANY):
        return name
    if (name := last_part(text)) in known:
        return known[name]
    raise Misunderstood(f"action {text[:200]}", "the act has no word here")


def _product(acts: list[str], use: Use) -> list[tuple[str, str, str, str]]:
    lists = (acts, use.purposes, use.regions, use.recipients)
    size = 1
    for one in lists:
        size *= len(one)
    if size > MAX_DRAFTS:
        raise CardTooLarge(f"A policy may become {MAX_DRAFTS} drafts. Split it.", max_drafts=MAX_DRAFTS)
    return list(itertools.product(*lists))

# SPDX-License-Identifier: Apache-2.0
"""The rules of deciding, written down a second time: slowly, literally, and apart from the product.

It reads plain JSON documents, walks the hierarchies anew for every comparison, has its own reader of
license expressions, and finds the end of a permit by asking again at every moment that any fact names.
Nothing of the product is imported here but its data files.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from oracle_answers import Answer, Json, Said, gravest

_DATA = Path(__file__).resolve().parents[2] / "policy" / "data"
_ON_PLATFORM = ("view_card", "compose", "infer", "evaluate", "attribute", "fine_tune", "train_on_outputs")
_ACTIONS = (*_ON_PLATFORM, "export_weights")

Denials = set[tuple[str, str]]
"""(gate, class) of everything that speaks against a use; none for a permit."""


def _parents(scheme: str) -> dict[str, list[str]]:
    return {t["id"]: t["parents"] for t in json.loads((_DATA / f"{scheme}-1.json").read_text())["terms"]}


_TREES = {"purpose": _parents("purposes"), "region": _parents("regions")}


@cache
def under(scheme: str, term: str, top: str) -> bool:
    """Whether a term is another one or somewhere below it."""
    return term == top or any(under(scheme, parent, top) for parent in _TREES[scheme][term])


def known(fact: Json) -> bool:
    """Whether all words of a fact are in the vocabulary."""
    return (
        (fact["action"] == "*" or fact["action"] in _ACTIONS)
        and (fact["purpose"] == "*" or fact["purpose"] in _TREES["purpose"])
        and (fact["region"] == "*" or fact["region"] in _TREES["region"])
    )


def permit_matches(fact: Json, use: Json) -> bool:
    """Whether the words of a permit cover a use."""
    if not known(fact):
        return False
    if fact["action"] != use["action"] and (fact["action"] != "*" or use["action"] == "export_weights"):
        return False
    return all(
        fact[scheme] == "*" or under(scheme, use[scheme], fact[scheme]) for scheme in ("purpose", "region")
    )


def forbid_matches(fact: Json, use: Json) -> bool:
    """Whether the words of a forbid hit a use; unreadable words hit every use."""
    if not known(fact):
        return True
    if fact["action"] not in ("*", use["action"]):
        return False
    for scheme in ("purpose", "region"):
        stated, asked = fact[scheme], use[scheme]
        if stated != "*" and not under(scheme, asked, stated) and not under(scheme, stated, asked):
            return False
    return True


def live(fact: Json, at_us: int) -> bool:
    """Whether a fact's half-open interval holds a moment."""
    return fact["valid_from_us"] <= at_us and (
        fact["valid_until_us"] is None or at_us < fact["valid_until_us"]
    )


@cache
def read_expression(text: str) -> Any:
    """Reads an SPDX expression into nested tuples, or returns None if it is none."""
    tokens = re.findall(r"[()]|[^\s()]+", text)

    def either(i: int) -> tuple[Any, int]:
        left, i = both(i)
        options = [left]
        while i < len(tokens) and tokens[i].upper() == "OR":
            right, i = both(i + 1)
            options.append(right)
        return (("or", options) if len(options) > 1 else left), i

    def both(i: int) -> tuple[Any, int]:
        left, i = one(i)
        parts = [left]
        while i < len(tokens) and tokens[i].upper() == "AND":
            right, i = one(i + 1)
            parts.append(right)
        return (("and", parts) if len(parts) > 1 else left), i

    def one(i: int) -> tuple[Any, int]:
        if tokens[i] == "(":
            inner, i = either(i + 1)
            if tokens[i] != ")":
                raise IndexError
            return inner, i + 1
        if tokens[i].upper() in ("AND", "OR", ")", "WITH"):
            raise IndexError
        if i + 2 < len(tokens) and tokens[i + 1].upper() == "WITH":
            return ("key", f"{tokens[i]} WITH {tokens[i + 2]}"), i + 3
        return ("key", tokens[i]), i + 1

    try:
        tree, end = either(0)
    except IndexError:
        return None
    return tree if end == len(tokens) else None


def license_permits(fact: Json | None, use: Json) -> bool:
    """Whether one license permits a use."""
    if fact is None or fact["key"].upper() in ("NOASSERTION", "NONE") or not fact["reviewed_by"].strip():
        return False
    needed = {
        "view_card": [],
        "export_weights": ["derivatives", "distribution_weights"],
        "fine_tune": ["hosted_use", "derivatives"],
        "train_on_outputs": ["hosted_use", "derivatives"],
    }.get(use["action"], ["hosted_use"])
    if use["commercial"]:
        needed = [*needed, "use_commercial"]
    return all(fact[facet] is True for facet in needed) and not any(
        term not in _TREES["purpose"]
        or under("purpose", use["purpose"], term)
        or under("purpose", term, use["purpose"])
        for term in fact["prohibited_purposes"]
    )


def duties(fact: Json, use: Json) -> int:
    """How many obligations a license lays on a use."""
    return (
        (fact["attribution"] is not False)
        + bool(fact["notice"])
        + len(set(fact["flow_down"]))
        + len(set(fact["prohibited_purposes"]))
        + bool(fact["share_alike_group"])
        + (fact["user_cap"] is not None)
        + bool(use["commercial"] and fact["royalty_ppm"])
    )


def chosen_licenses(world: Json, expression: str, use: Json) -> tuple[str, ...] | None:
    """The licenses a permit rests on, None if the expression does not permit.

    AND needs all its parts. OR takes, of its parts that permit, the one with the fewest obligations,
    then the first by name.
    """
    table = {fact["key"].lower(): fact for fact in world["licenses"]}

    def choose(tree: Any) -> tuple[str, ...] | None:
        if tree[0] == "key":
            fact = table.get(tree[1].lower())
            return (fact["key"],) if fact and license_permits(fact, use) else None
        found = [choose(part) for part in tree[1]]
        if tree[0] == "and":
            if None in found:
                return None
            return tuple(sorted({key for keys in found for key in keys or ()}))
        fine = [keys for keys in found if keys is not None]
        ranked = [(sum(duties(table[key.lower()], use) for key in keys), keys) for keys in fine]
        return min(ranked)[1] if ranked else None

    tree = read_expression(expression)
    return None if tree is None else choose(tree)


def question_fails(world: Json, use: Json) -> bool:
    """Whether the question itself is not understood."""
    return (
        world["engine_version"] != "1"
        or world["vocabulary_version"] != "1"
        or use["action"] not in _ACTIONS
        or use["purpose"] not in _TREES["purpose"]
        or use["region"] not in _TREES["region"]
    )


def stands(world: Json, use: Json) -> bool:
    """Whether consumer and base are known and active."""
    standing = {tenant["slug"]: tenant["status"] for tenant in world["tenants"]}
    bases = {base["base_digest"]: base["status"] for base in world["bases"]}
    return standing.get(use["tenant"]) == "active" and bases.get(use["base_digest"]) == "active"


def denials(world: Json, use: Json, expert: Json, at_us: int) -> Denials:
    """What the gates say against one expert for one use at one moment."""
    if question_fails(world, use):
        return {("facts", "error")}
    found: Denials = set()
    standing = {tenant["slug"]: tenant["status"] for tenant in world["tenants"]}
    if (
        not stands(world, use)
        or standing.get(expert["tenant"]) != "active"
        or expert["base_digest"] != use["base_digest"]
        or expert["state"] != "listed"
    ):
        found.add(("identity", "not_identified"))
    found |= consent_denials(world, use, expert, at_us)
    if not any(
        g["tenant"] == expert["tenant"]
        and g["expert_id"] in ("*", expert["expert_id"])
        and g["consumer_tenant"] in ("*", use["tenant"])
        and g["state"] == "given"
        and live(g, at_us)
        and permit_matches(g, use)
        and (g["commercial"] or not use["commercial"])
        for g in world["grants"]
    ):
        found.add(("grant", "no_grant"))
    if terms(world, use, expert) is None:
        found.add(("license", "license"))
    about = [
        r
        for r in world["rules"]
        if r["expert_id"] in ("*", expert["expert_id"]) and r["consumer_tenant"] in ("*", use["tenant"])
    ]
    if any(not known(r) for r in about):
        found.add(("rules", "error"))
    if any(r["effect"] == "forbid" and known(r) and forbid_matches(r, use) for r in about):
        found.add(("rules", "forbidden"))
    if not any(r["effect"] == "permit" and permit_matches(r, use) for r in about):
        found.add(("rules", "no_rule"))
    return found


def consent_denials(world: Json, use: Json, expert: Json, at_us: int) -> Denials:
    """What the owners of an expert and of its datasets say against a use, or leave unsaid."""
    found: Denials = set()

    def ask(of: str, about_dataset: str | None, *, need_permit: bool) -> None:
        said = [
            c
            for c in world["consents"]
            if c["tenant"] == of
            and c["dataset_id"] == about_dataset
            and c["expert_id"] in ("*", expert["expert_id"])
            and c["recipient"] in ("*", use["tenant"])
            and c["state"] == "given"
            and live(c, at_us)
        ]
        for c in said:
            if c["effect"] == "forbid" and forbid_matches(c, use):
                found.add(("consent", "forbidden" if known(c) else "error"))
        if need_permit and not any(
            c["effect"] == "permit" and permit_matches(c, use) and (c["commercial"] or not use["commercial"])
            for c in said
        ):
            found.add(("consent", "no_consent"))

    ask(expert["tenant"], None, need_permit=True)
    if not expert["datasets"]:
        found.add(("consent", "no_consent"))
    for dataset in expert["datasets"]:
        separate = dataset["consent"] == "separate"
        if dataset["consent"] == "withdrawn" or (not separate and dataset["tenant"] != expert["tenant"]):
            found.add(("consent", "no_consent"))
        ask(dataset["tenant"], dataset["id"], need_permit=separate)
    return found


def failed_gates(world: Json, use: Json, expert: Json, at_us: int) -> set[str]:
    """The gates that deny one expert one use at one moment; none for a permit."""
    return {gate for gate, _ in denials(world, use, expert, at_us)}


def terms_of_base(world: Json, use: Json) -> list[tuple[str, str]] | None:
    """(subject, license) pairs of the base alone, None if it is denied; none for an unknown base."""
    base = {b["base_digest"]: b for b in world["bases"]}.get(use["base_digest"])
    if base is None:
        return []
    chosen = chosen_licenses(world, base["license"], use)
    return None if chosen is None else [(base["base_digest"], key) for key in chosen]


def terms(world: Json, use: Json, expert: Json) -> list[tuple[str, str]] | None:
    """(subject, license) pairs that an expert stands on together with its base, None if that is denied."""
    subjects = [(expert["expert_id"], expert["license"])]
    subjects += [(dataset["id"], dataset["license"]) for dataset in expert["datasets"]]
    pairs: list[tuple[str, str]] = []
    for subject, expression in subjects:
        chosen = chosen_licenses(world, expression, use)
        if chosen is None:
            return None
        pairs += [(subject, key) for key in chosen]
    ground = terms_of_base(world, use)
    if ground is None or clash(world, use, [*pairs, *ground]):
        return None
    return pairs + ground


def clash(world: Json, use: Json, pairs: list[tuple[str, str]]) -> bool:
    """Whether licenses cannot be obeyed together."""
    table = {fact["key"]: fact for fact in world["licenses"]}
    groups = {table[key]["share_alike_group"] for _, key in pairs} - {None, ""}
    if use["action"] == "export_weights" and len(groups) > 1:
        return True
    return bool(use["commercial"]) and sum(table[key]["royalty_ppm"] for _, key in set(pairs)) > 1_000_000


def moments(world: Json) -> list[int]:
    """Every moment at which some fact begins or ends."""
    return sorted(
        {
            moment
            for fact in (*world["consents"], *world["grants"])
            for moment in (fact["valid_from_us"], fact["valid_until_us"])
            if moment is not None
        }
    )


def decide(world: Json, use: Json, expert: Json, at_us: int) -> tuple[Denials, int | None]:
    """What speaks against a use, and for a permit the first moment at which it is one no more."""
    found = denials(world, use, expert, at_us)
    if found:
        return found, None
    for moment in moments(world):
        if moment > at_us and denials(world, use, expert, moment):
            return set(), moment
    return set(), None


def deployment(world: Json, name: str) -> Json:
    """The use that a deployment asks for."""
    found: Json = next(d for d in world["deployments"] if d["name"] == name)
    return found


def candidates(world: Json, use: Json) -> list[Json]:
    """The experts that a use asks for, by bundle digest."""
    wanted = use["candidates"]
    return [
        e
        for e in sorted(world["experts"], key=lambda e: e["bundle_digest"])
        if wanted == "*" or e["expert_id"] in wanted or e["bundle_digest"] in wanted
    ]


Judged = dict[str, tuple[Denials, int | None]]


def judge(world: Json, name: str, at_us: int) -> Judged:
    """What the gates say to a deployment about every expert alone, candidate or not, by bundle digest."""
    use = deployment(world, name)
    return {e["bundle_digest"]: decide(world, use, e, at_us) for e in world["experts"]}


def compose(world: Json, name: str, judged: Judged) -> Json:
    """The composition of a deployment: per candidate (denials, end), members, dropped, and what denies."""
    use = deployment(world, name)
    experts = candidates(world, use)
    said = {e["bundle_digest"]: judged[e["bundle_digest"]] for e in experts}
    for bundle, (found, _) in said.items():
        if not found and use["members"] is not None and bundle not in use["members"]:
            said[bundle] = ({("set", "awaits_review")}, None)
    understood = not question_fails(world, use)
    ground = terms_of_base(world, use) if understood else None
    denied = ground is None or not stands(world, use) or clash(world, use, ground)
    stand = {
        e["bundle_digest"]: terms(world, use, e) or [] for e in experts if not said[e["bundle_digest"]][0]
    }

    def clashes(bundles: list[str]) -> bool:
        return clash(world, use, [pair for bundle in bundles for pair in stand[bundle]])

    members, dropped = sorted(stand), []
    if clashes(members):
        if use["on_conflict"] == "strict":
            dropped, members, denied = members, [], True
        else:
            order = {e["bundle_digest"]: e["expert_id"] for e in experts}
            first = {one: place for place, one in reversed(list(enumerate(use["priority"])))}
            queue = sorted(members, key=lambda b: (first.get(order[b], len(use["priority"])), order[b], b))
            members = []
            for bundle in queue:
                (dropped if clashes([*members, bundle]) else members).append(bundle)
        for bundle in dropped:
            said[bundle] = ({("set", "set_conflict")}, None)
        dropped = dropped if use["on_conflict"] == "drop_by_rule" else []
    members.sort()
    top_k = min(use["top_k"], len(members) + 1)
    named = {
        "base": use["base_digest"],
        "experts": members,
        "router": {"top_k": top_k, "variant": "gated", "version": 2},
    }
    text = json.dumps(named, sort_keys=True, separators=(",", ":"))
    stops = [end for member in members if (end := said[member][1]) is not None]
    return {
        "said": said,
        "members": members,
        "dropped": sorted(dropped),
        "denied": denied,
        "top_k": top_k,
        "digest": "sha256:" + hashlib.sha256(text.encode()).hexdigest(),
        "valid_until_us": min(stops, default=None),
    }


def answer(world: Json, found: Json) -> Answer:
    """What ``compose`` found for the deployment ``lab``, in the form that is compared."""
    wanted = deployment(world, "lab")["candidates"]
    names = {name for e in world["experts"] for name in (e["expert_id"], e["bundle_digest"])}
    unknown = [] if wanted == "*" else sorted(set(wanted) - names)
    experts = [
        Said(bundle, gravest({of for _, of in why}), frozenset(gate for gate, _ in why), end)
        for bundle, (why, end) in found["said"].items()
    ]
    return Answer(
        experts=(*experts, *(Said(name, "error", frozenset({"facts"}), None) for name in unknown)),
        members=tuple(found["members"]),
        dropped=tuple(found["dropped"]),
        denied=found["denied"],
        ends_us=found["valid_until_us"],
    )


def minimal_conflicts(world: Json, name: str, at_us: int) -> list[set[str]]:
    """All conflict sets of permitted candidates from which nothing can be taken."""
    use = deployment(world, name)
    stand = {
        e["bundle_digest"]: terms(world, use, e) or []
        for e in world["experts"]
        if not failed_gates(world, use, e, at_us)
    }
    found: list[set[str]] = []
    for size in range(1, len(stand) + 1):
        for bundles in combinations(sorted(stand), size):
            if any(small <= set(bundles) for small in found):
                continue
            if clash(world, use, [pair for bundle in bundles for pair in stand[bundle]]):
                found.append(set(bundles))
    return found

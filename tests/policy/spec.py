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
from itertools import combinations
from pathlib import Path
from typing import Any

Json = dict[str, Any]

_DATA = Path(__file__).resolve().parents[2] / "policy" / "data"
_ON_PLATFORM = ("view_card", "compose", "infer", "evaluate", "attribute", "fine_tune", "train_on_outputs")
_ACTIONS = (*_ON_PLATFORM, "export_weights")


def _parents(scheme: str) -> dict[str, list[str]]:
    return {t["id"]: t["parents"] for t in json.loads((_DATA / f"{scheme}-1.json").read_text())["terms"]}


_PURPOSES, _REGIONS = _parents("purposes"), _parents("regions")


def under(tree: dict[str, list[str]], term: str, top: str) -> bool:
    """Whether a term is another one or somewhere below it."""
    return term == top or any(under(tree, parent, top) for parent in tree[term])


def known(fact: Json) -> bool:
    """Whether all words of a fact are in the vocabulary."""
    return (
        (fact["action"] == "*" or fact["action"] in _ACTIONS)
        and (fact["purpose"] == "*" or fact["purpose"] in _PURPOSES)
        and (fact["region"] == "*" or fact["region"] in _REGIONS)
    )


def permit_matches(fact: Json, use: Json) -> bool:
    """Whether the words of a permit cover a use."""
    if not known(fact):
        return False
    if fact["action"] != use["action"] and (fact["action"] != "*" or use["action"] == "export_weights"):
        return False
    for tree, field in ((_PURPOSES, "purpose"), (_REGIONS, "region")):
        if fact[field] != "*" and not under(tree, use[field], fact[field]):
            return False
    return True


def forbid_matches(fact: Json, use: Json) -> bool:
    """Whether the words of a forbid hit a use; unreadable words hit every use."""
    if not known(fact):
        return True
    if fact["action"] not in ("*", use["action"]):
        return False
    for tree, field in ((_PURPOSES, "purpose"), (_REGIONS, "region")):
        stated, asked = fact[field], use[field]
        if stated != "*" and not under(tree, asked, stated) and not under(tree, stated, asked):
            return False
    return True


def live(fact: Json, at_us: int) -> bool:
    """Whether a fact's half-open interval holds a moment."""
    return fact["valid_from_us"] <= at_us and (
        fact["valid_until_us"] is None or at_us < fact["valid_until_us"]
    )


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
        return ("key", tokens[i]), i + 1

    try:
        tree, end = either(0)
    except IndexError:
        return None
    return tree if end == len(tokens) else None


def branches(tree: Any) -> list[frozenset[str]]:
    """Every set of licenses that would satisfy an expression."""
    if tree[0] == "key":
        return [frozenset({tree[1].lower()})]
    if tree[0] == "or":
        return [branch for part in tree[1] for branch in branches(part)]
    found = [frozenset[str]()]
    for part in tree[1]:
        found = [one | other for one in found for other in branches(part)]
    return found


def license_permits(fact: Json | None, use: Json) -> bool:
    """Whether one license permits a use."""
    if fact is None or not fact["reviewed_by"]:
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
        term not in _PURPOSES
        or under(_PURPOSES, use["purpose"], term)
        or under(_PURPOSES, term, use["purpose"])
        for term in fact["prohibited_purposes"]
    )


def duties(fact: Json, use: Json) -> int:
    """How many obligations a license lays on a use."""
    return (
        (fact["attribution"] is not False)
        + bool(fact["notice"])
        + len(fact["flow_down"])
        + len(fact["prohibited_purposes"])
        + bool(fact["share_alike_group"])
        + (fact["user_cap"] is not None)
        + bool(use["commercial"] and fact["royalty_ppm"])
    )


def chosen_licenses(world: Json, expression: str, use: Json) -> tuple[str, ...] | None:
    """The licenses a permit rests on: of all branches that permit, the lightest, then the first by name."""
    tree = read_expression(expression)
    if tree is None:
        return None
    table = {fact["key"].lower(): fact for fact in world["licenses"]}
    fine = [b for b in branches(tree) if all(license_permits(table.get(key), use) for key in b)]
    ranked = [
        (sum(duties(table[key], use) for key in b), tuple(sorted(table[key]["key"] for key in b)))
        for b in fine
    ]
    return min(ranked)[1] if ranked else None


def failed_gates(world: Json, use: Json, expert: Json, at_us: int) -> set[str]:
    """The gates that deny one expert one use at one moment; none for a permit."""
    if use["action"] not in _ACTIONS or use["purpose"] not in _PURPOSES or use["region"] not in _REGIONS:
        return {"facts"}
    failed = set()
    standing = {tenant["slug"]: tenant["status"] for tenant in world["tenants"]}
    bases = {base["base_digest"]: base for base in world["bases"]}
    base = bases.get(use["base_digest"])
    if (
        standing.get(use["tenant"]) != "active"
        or standing.get(expert["tenant"]) != "active"
        or base is None
        or base["status"] != "active"
        or expert["base_digest"] != use["base_digest"]
        or expert["state"] != "listed"
    ):
        failed.add("identity")

    def word(of: str, about_dataset: str | None, *, need_permit: bool) -> bool:
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
                return False
        return not need_permit or any(
            c["effect"] == "permit" and permit_matches(c, use) and (c["commercial"] or not use["commercial"])
            for c in said
        )

    if not word(expert["tenant"], None, need_permit=True) or not expert["datasets"]:
        failed.add("consent")
    for dataset in expert["datasets"]:
        separate = dataset["consent"] == "separate"
        if (
            dataset["consent"] == "withdrawn"
            or (not separate and dataset["tenant"] != expert["tenant"])
            or not word(dataset["tenant"], dataset["id"], need_permit=separate)
        ):
            failed.add("consent")

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
        failed.add("grant")

    if terms(world, use, expert) is None:
        failed.add("license")

    about = [
        r
        for r in world["rules"]
        if r["expert_id"] in ("*", expert["expert_id"]) and r["consumer_tenant"] in ("*", use["tenant"])
    ]
    if (
        any(not known(r) for r in about)
        or any(r["effect"] == "forbid" and forbid_matches(r, use) for r in about)
        or not any(r["effect"] == "permit" and permit_matches(r, use) for r in about)
    ):
        failed.add("rules")
    return failed


def terms(world: Json, use: Json, expert: Json) -> list[tuple[str, str]] | None:
    """(subject, license) pairs that an expert stands on together with its base, None if that is denied."""
    base = {b["base_digest"]: b for b in world["bases"]}.get(use["base_digest"])
    subjects = [(expert["expert_id"], expert["license"])]
    subjects += [(dataset["id"], dataset["license"]) for dataset in expert["datasets"]]
    subjects += [(base["base_digest"], base["license"])] if base else []
    pairs: list[tuple[str, str]] = []
    for subject, expression in subjects:
        chosen = chosen_licenses(world, expression, use)
        if chosen is None:
            return None
        pairs += [(subject, key) for key in chosen]
    return None if clash(world, use, pairs) else pairs


def clash(world: Json, use: Json, pairs: list[tuple[str, str]]) -> bool:
    """Whether licenses cannot be obeyed together."""
    table = {fact["key"]: fact for fact in world["licenses"]}
    groups = {table[key]["share_alike_group"] for _, key in pairs} - {None}
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


def decide(world: Json, use: Json, expert: Json, at_us: int) -> tuple[set[str], int | None]:
    """The failed gates, and for a permit the first moment at which it is one no more."""
    failed = failed_gates(world, use, expert, at_us)
    if failed:
        return failed, None
    for moment in moments(world):
        if moment > at_us and failed_gates(world, use, expert, moment):
            return set(), moment
    return set(), None


def compose(world: Json, name: str, at_us: int) -> Json:
    """The composition of a deployment."""
    use = next(d for d in world["deployments"] if d["name"] == name)
    wanted = use["candidates"]
    experts = [
        e
        for e in sorted(world["experts"], key=lambda e: e["bundle_digest"])
        if wanted == "*" or e["expert_id"] in wanted or e["bundle_digest"] in wanted
    ]
    ends = {}
    for expert in experts:
        failed, end = decide(world, use, expert, at_us)
        if not failed and (use["members"] is None or expert["bundle_digest"] in use["members"]):
            ends[expert["bundle_digest"]] = end
    stand = {e["bundle_digest"]: terms(world, use, e) or [] for e in experts if e["bundle_digest"] in ends}

    def clashes(bundles: list[str]) -> bool:
        return clash(world, use, [pair for bundle in bundles for pair in stand[bundle]])

    members, dropped, denied = sorted(stand), [], False
    if clashes(members):
        if use["on_conflict"] == "strict":
            members, denied = [], True
        else:
            order = {e["bundle_digest"]: e["expert_id"] for e in experts}
            first = {one: place for place, one in enumerate(use["priority"])}
            queue = sorted(members, key=lambda b: (first.get(order[b], 99), order[b], b))
            members = []
            for bundle in queue:
                if clashes([*members, bundle]):
                    dropped.append(bundle)
                else:
                    members.append(bundle)
    members.sort()
    top_k = min(use["top_k"], len(members) + 1)
    named = {
        "base": use["base_digest"],
        "experts": members,
        "router": {"top_k": top_k, "variant": "gated", "version": 2},
    }
    text = json.dumps(named, sort_keys=True, separators=(",", ":"))
    stops = [ends[member] for member in members if ends[member] is not None]
    return {
        "members": members,
        "dropped": sorted(dropped),
        "denied": denied,
        "top_k": top_k,
        "digest": "sha256:" + hashlib.sha256(text.encode()).hexdigest(),
        "valid_until_us": min(stops, default=None),
    }


def minimal_conflicts(world: Json, name: str, at_us: int) -> list[set[str]]:
    """All conflict sets of permitted candidates from which nothing can be taken."""
    use = next(d for d in world["deployments"] if d["name"] == name)
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

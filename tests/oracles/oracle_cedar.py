# SPDX-License-Identifier: Apache-2.0
"""The per-expert gates in Cedar: every fact of a world becomes a policy, every gate an action.

Cedar decides; this module only translates, asks, and closes one gap: Cedar skips a policy whose condition
cannot be evaluated, so that a prohibition with an unknown word would prohibit nothing. Here any such error
denies. What the members of a set owe each other and when a permit ends are not asked of Cedar.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import cedarpy
from oracle_answers import Case, Gates, Json

_DATA = Path(__file__).resolve().parents[2] / "policy" / "data"
_ACTIONS = [
    "view_card",
    "compose",
    "infer",
    "evaluate",
    "attribute",
    "fine_tune",
    "train_on_outputs",
    "export_weights",
]
_NEEDS = {
    "view_card": [],
    "export_weights": ["derivatives", "distribution_weights"],
    "fine_tune": ["hosted_use", "derivatives"],
    "train_on_outputs": ["hosted_use", "derivatives"],
}
_FACETS = ("hosted_use", "use_commercial", "derivatives", "distribution_weights")

ALWAYS = {
    "facts": """
permit(principal, action == Action::"facts", resource) when {
  context.engine == "1" && context.vocabulary == "1" && context.actions.contains(context.action)
  && context.purpose.known && context.region.known };
""",
    "identity": """
permit(principal, action == Action::"identity", resource) when {
  context.tenants.contains(context.consumer) && context.tenants.contains(context.owner)
  && context.bases.contains(context.asked_base) && context.base == context.asked_base
  && context.state == "listed" };
""",
    "consent": """
forbid(principal, action == Action::"consent", resource) when { context.about == "" && context.lineage == 0 };
permit(principal, action == Action::"consent", resource) when { context.mode == "with_expert" };
forbid(principal, action == Action::"consent", resource) when {
  context.mode == "with_expert" && context.owner != context.expert_owner };
forbid(principal, action == Action::"consent", resource) when { context.mode == "withdrawn" };
""",
}


@cache
def entities() -> cedarpy.Entities:
    """The vocabulary as Cedar entities; what is not in it does not exist."""
    found = [_entity("Act", action, []) for action in _ACTIONS]
    for scheme, kind in (("purposes", "Purpose"), ("regions", "Region")):
        terms = json.loads((_DATA / f"{scheme}-1.json").read_text())["terms"]
        found += [_entity(kind, term["id"], [(kind, one) for one in term["parents"]]) for term in terms]
    return cedarpy.Entities.from_json_str(json.dumps(found))


def _entity(kind: str, name: str, parents: list[tuple[str, str]]) -> Json:
    return {
        "uid": {"type": kind, "id": name},
        "attrs": {"known": True},
        "parents": [{"type": of, "id": one} for of, one in parents],
    }


def answer(case: Case) -> tuple[Gates, ...]:
    """Which gates deny each candidate now."""
    use = next(one for one in case.world["deployments"] if one["name"] == "lab")
    experts = _candidates(case.world, use)
    common = _common(case, use)
    versions = {"engine": case.world["engine_version"], "vocabulary": case.world["vocabulary_version"]}
    versions["actions"] = list(_ACTIONS)
    if _verdict("facts", ALWAYS["facts"], use["tenant"], _json(common | versions)) != "holds":
        # A question that is not understood is not put to the other gates.
        facts = frozenset({"facts"})
        return tuple(Gates(expert["bundle_digest"], facts, facts) for expert in experts)
    failed: dict[str, set[str]] = {expert["bundle_digest"]: set() for expert in experts}
    errors: dict[str, set[str]] = {bundle: set() for bundle in failed}
    for gate, policies, about in _questions(case, use, experts, common):
        for bundle, context in about:
            verdict = _verdict(gate, policies, use["tenant"], _json(context))
            if verdict != "holds":
                failed[bundle].add(gate)
            if verdict == "errs":
                errors[bundle].add(gate)
    return tuple(
        Gates(bundle, frozenset(gates), frozenset(errors[bundle])) for bundle, gates in failed.items()
    )


@lru_cache(maxsize=40_000)
def _verdict(gate: str, policies: str, consumer: str, context: str) -> str:
    """Asks Cedar one question; worlds have many in common, and each is asked once."""
    request = {
        "principal": _uid("Tenant", consumer),
        "action": _uid("Action", gate),
        "resource": _uid("Expert", "candidate"),
        "context": context,
    }
    said = cedarpy.is_authorized(request, _parsed(policies), entities())
    return "holds" if holds(said) else "errs" if said.diagnostics.errors else "denies"


@lru_cache(maxsize=8_192)
def _parsed(policies: str) -> Any:
    return cedarpy.PolicySet.from_str(policies)


def holds(said: Any) -> bool:
    """Whether a gate holds: Cedar allows, and every policy could be evaluated."""
    return bool(said.allowed) and not said.diagnostics.errors


def policies_of(case: Case, gate: str, about: Json | None = None) -> str:
    """The facts of a world that one gate looks at, as Cedar policies.

    With ``about`` (the context of a question) only those whose owner, expert and dataset are asked about.
    The others could not be satisfied, which Cedar would find out again for every world.
    """
    world = case.world
    if gate == "rules":
        return "\n".join(_of_rule(fact) for fact in _sliced(world["rules"], about))
    recipient = "recipient" if gate == "consent" else "consumer_tenant"
    facts = [_of_owner(fact, gate, fact[recipient]) for fact in _sliced(world[gate + "s"], about)]
    return "\n".join([ALWAYS.get(gate, ""), *facts])


def _sliced(facts: list[Json], about: Json | None) -> list[Json]:
    if about is None:
        return facts
    return [
        fact
        for fact in facts
        if fact["expert_id"] in ("*", about["expert"])
        and fact.get("tenant", about["owner"]) == about["owner"]
        and (fact.get("dataset_id") or "") == about.get("about", "")
    ]


def _of_owner(fact: Json, gate: str, recipient: str) -> str:
    effect = fact.get("effect", "permit")
    if fact["state"] != "given":
        return ""
    conditions = [f"context.owner == {_text(fact['tenant'])}"]
    if gate == "consent":
        conditions.append(f"context.about == {_text(fact['dataset_id'] or '')}")
    if fact["expert_id"] != "*":
        conditions.append(f"context.expert == {_text(fact['expert_id'])}")
    if recipient != "*":
        conditions.append(f"principal == Tenant::{_text(recipient)}")
    conditions.append(f"{fact['valid_from_us']} <= context.now")
    if fact["valid_until_us"] is not None:
        conditions.append(f"context.now < {fact['valid_until_us']}")
    if effect == "permit":
        if not fact["commercial"]:
            conditions.append("!context.commercial")
        conditions += _covers(fact)
    else:
        conditions += [*_known(fact), *_hits(fact)]
    return _policy(effect, gate, conditions)


def _of_rule(fact: Json) -> str:
    conditions = []
    if fact["expert_id"] != "*":
        conditions.append(f"context.expert == {_text(fact['expert_id'])}")
    if fact["consumer_tenant"] != "*":
        conditions.append(f"principal == Tenant::{_text(fact['consumer_tenant'])}")
    words = _covers(fact) if fact["effect"] == "permit" else _hits(fact)
    return _policy(fact["effect"], "rules", [*conditions, *_known(fact), *words])


def _policy(effect: str, gate: str, conditions: list[str]) -> str:
    body = " && ".join(conditions) or "true"
    return f'{effect}(principal, action == Action::"{gate}", resource) when {{ {body} }};'


def _covers(fact: Json) -> list[str]:
    found = ['context.action != "export_weights"']
    if fact["action"] != "*":
        found = [f"context.action == {_text(fact['action'])}"]
    if fact["purpose"] != "*":
        found.append(f"context.purpose in Purpose::{_text(fact['purpose'])}")
    if fact["region"] != "*":
        found.append(f"context.region in Region::{_text(fact['region'])}")
    return found


def _known(fact: Json) -> list[str]:
    kinds = (("action", "Act"), ("purpose", "Purpose"), ("region", "Region"))
    return [f"{kind}::{_text(fact[field])}.known" for field, kind in kinds if fact[field] != "*"]


def _hits(fact: Json) -> list[str]:
    found = [] if fact["action"] == "*" else [f"context.action == {_text(fact['action'])}"]
    for field, kind in (("purpose", "Purpose"), ("region", "Region")):
        if fact[field] != "*":
            stated = f"{kind}::{_text(fact[field])}"
            found.append(f"(context.{field} in {stated} || {stated} in context.{field})")
    return found


def license_policies(trees: list[Any], table: dict[str, Json], use: Json) -> str:
    """A permit where every subject's expression permits, and forbids for terms that exclude each other."""
    parts = [_policy("permit", "license", [_permits(tree, table) for tree in trees])]
    named = [sorted(_keys(tree)) for tree in trees]
    royalties = [table[key]["royalty_ppm"] for keys in named for key in keys if key in table]
    groups = {table[key]["share_alike_group"] or "" for keys in named for key in keys if key in table} - {""}
    if use["commercial"] and sum(royalties) > 1_000_000:
        total = " + ".join(_chosen(tree, table, use, _royalty) for tree in trees)
        parts.append(_policy("forbid", "license", [f"{total} > 1000000"]))
    if use["action"] == "export_weights":
        held = [_chosen(tree, table, use, _groups) for tree in trees]
        for one, other in itertools.combinations(sorted(groups), 2):
            both = [
                "(" + " || ".join(f"({text}).contains({_text(group)})" for text in held) + ")"
                for group in (one, other)
            ]
            parts.append(_policy("forbid", "license", both))
    return "\n".join(parts)


def _permits(tree: Any, table: dict[str, Json]) -> str:
    if tree is None:
        return "false"
    if tree[0] == "license":
        return _leaf(tree[1], table)
    return "(" + f" {'&&' if tree[0] == 'and' else '||'} ".join(_permits(t, table) for t in tree[1]) + ")"


def _leaf(key: str, table: dict[str, Json]) -> str:
    fact = table.get(key)
    if fact is None or key in ("noassertion", "none") or not fact["reviewed_by"].strip():
        return "false"
    held = ", ".join(_text(name) for name in _FACETS if fact[name] is True)
    conditions = [f"[{held}].containsAll(context.needs)"]
    for term in fact["prohibited_purposes"]:
        named = f"Purpose::{_text(term)}"
        conditions.append(f'{named} in Purpose::"any"')
        conditions.append(f"!(context.purpose in {named} || {named} in context.purpose)")
    return "(" + " && ".join(conditions) + ")"


def _chosen(tree: Any, table: dict[str, Json], use: Json, value: Any) -> str:
    """What the licenses that an expression rests on amount to, for every way its parts may permit."""
    keys = sorted(_keys(tree))
    text = value((), table)
    for held in itertools.product((False, True), repeat=len(keys)):
        permits = dict(zip(keys, held, strict=True))
        condition = " && ".join(
            ("" if held_one else "!") + _leaf(key, table) for key, held_one in permits.items()
        )
        chosen = _choose(tree, permits, table, use)
        if chosen:
            text = f"(if {condition} then {value(chosen, table)} else {text})"
    return str(text)


def _royalty(keys: tuple[str, ...], table: dict[str, Json]) -> str:
    return str(sum(table[key]["royalty_ppm"] for key in keys))


def _groups(keys: tuple[str, ...], table: dict[str, Json]) -> str:
    groups = sorted({table[key]["share_alike_group"] or "" for key in keys} - {""})
    return "[" + ", ".join(_text(group) for group in groups) + "]"


def _choose(tree: Any, permits: dict[str, bool], table: dict[str, Json], use: Json) -> tuple[str, ...] | None:
    if tree is None:
        return None
    if tree[0] == "license":
        return (tree[1],) if permits[tree[1]] and tree[1] in table else None
    parts = [_choose(part, permits, table, use) for part in tree[1]]
    if tree[0] == "and":
        together = {key for part in parts if part for key in part}
        return None if None in parts else tuple(sorted(together))
    fine = [part for part in parts if part]
    return min(fine, key=lambda keys: _weight(keys, table, use), default=None)


def _weight(keys: tuple[str, ...], table: dict[str, Json], use: Json) -> tuple[int, list[str]]:
    duties = 0
    for fact in (table[key] for key in keys):
        duties += len(set(fact["flow_down"])) + len(set(fact["prohibited_purposes"])) + bool(fact["notice"])
        duties += (fact["attribution"] is not False) + bool(fact["share_alike_group"])
        duties += (fact["user_cap"] is not None) + (use["commercial"] and fact["royalty_ppm"] > 0)
    return duties, sorted(table[key]["key"] for key in keys)


@cache
def _read(text: str) -> Any:
    """An expression as ("license", key) or ("and" | "or", parts); None if it cannot be read."""
    tokens = re.findall(r"[()]|[^\s()]+", text.lower())
    tree, rest = _sum(tokens)
    return tree if not rest else None


def _sum(tokens: list[str]) -> tuple[Any, list[str]]:
    return _joined(tokens, "or", lambda rest: _joined(rest, "and", _atom))


def _joined(tokens: list[str], word: str, inner: Any) -> tuple[Any, list[str]]:
    first, rest = inner(tokens)
    parts = [first]
    while rest and rest[0] == word:
        more, rest = inner(rest[1:])
        parts.append(more)
    if any(part is None for part in parts):
        return None, rest
    return (parts[0] if len(parts) == 1 else (word, parts)), rest


def _atom(tokens: list[str]) -> tuple[Any, list[str]]:
    if not tokens or tokens[0] in ("and", "or", "with", ")"):
        return None, tokens
    if tokens[0] == "(":
        tree, rest = _sum(tokens[1:])
        return (tree, rest[1:]) if rest[:1] == [")"] else (None, rest)
    if tokens[1:2] == ["with"] and len(tokens) > 2:
        return ("license", " ".join((tokens[0], "with", tokens[2]))), tokens[3:]
    return ("license", tokens[0]), tokens[1:]


def _keys(tree: Any) -> set[str]:
    if tree is None:
        return set()
    return {tree[1]} if tree[0] == "license" else set().union(*map(_keys, tree[1]))


def _common(case: Case, use: Json) -> Json:
    return {
        "action": use["action"],
        "purpose": _ref("Purpose", use["purpose"]),
        "region": _ref("Region", use["region"]),
        "commercial": use["commercial"],
        "now": case.at_us,
    }


_About = list[tuple[str, Json]]


def _questions(case: Case, use: Json, experts: list[Json], common: Json) -> Iterator[tuple[str, str, _About]]:
    """(gate, policies, what is asked about each expert) for all gates but the first."""
    world = case.world
    identity: _About = []
    owned: _About = []
    consents: _About = []
    standing = _standing(world, use)
    for expert in experts:
        bundle = expert["bundle_digest"]
        own = common | {"expert": expert["expert_id"], "owner": expert["tenant"]}
        owned.append((bundle, own))
        who = {"owner": expert["tenant"], "base": expert["base_digest"], "state": expert["state"]}
        identity.append((bundle, standing | who))
        consents.append((bundle, own | {"about": "", "mode": "own", "lineage": len(expert["datasets"])}))
        for one in expert["datasets"]:
            of = {"about": one["id"], "mode": one["consent"], "owner": one["tenant"], "lineage": 1}
            consents.append((bundle, own | of | {"expert_owner": expert["tenant"]}))
    yield "identity", ALWAYS["identity"], identity
    for gate, asked in (("consent", consents), ("grant", owned), ("rules", owned)):
        for bundle, context in asked:
            yield gate, policies_of(case, gate, context), [(bundle, context)]
    table = {fact["key"].lower(): fact for fact in world["licenses"]}
    ground = [one["license"] for one in world["bases"] if one["base_digest"] == use["base_digest"]]
    needs = [*_NEEDS.get(use["action"], ["hosted_use"]), *["use_commercial"] * use["commercial"]]
    uses = {"needs": needs, "purpose": common["purpose"]}
    for expert in experts:
        subjects = [expert["license"], *(one["license"] for one in expert["datasets"]), *ground]
        policies = license_policies([_read(text) for text in subjects], table, use)
        yield "license", policies, [(expert["bundle_digest"], uses)]


def _standing(world: Json, use: Json) -> Json:
    return {
        "consumer": use["tenant"],
        "asked_base": use["base_digest"],
        "tenants": [one["slug"] for one in world["tenants"] if one["status"] == "active"],
        "bases": [one["base_digest"] for one in world["bases"] if one["status"] == "active"],
    }


def _candidates(world: Json, use: Json) -> list[Json]:
    wanted = use["candidates"]
    chosen = [
        one
        for one in world["experts"]
        if wanted == "*" or {one["expert_id"], one["bundle_digest"]} & set(wanted)
    ]
    return sorted(chosen, key=lambda one: str(one["bundle_digest"]))


def _uid(kind: str, name: str) -> Json:
    return {"type": kind, "id": name}


def _ref(kind: str, name: str) -> Json:
    return {"__entity": {"type": kind, "id": name}}


def _json(context: Json) -> str:
    return json.dumps(context)


_text = json.dumps

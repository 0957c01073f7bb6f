# SPDX-License-Identifier: Apache-2.0
"""The five gates in Cedar, for a register simple enough to suit it, with everything read beforehand.

Cedar has no "one of these facts", so every expert has one consent, one grant and one dataset here, as
attributes of its entity: the form in which Cedar decides soonest. Rules and prohibited purposes are policies.
Knows nothing of how decisions are made elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import cedarpy

from policy.deciding.questions import Asked
from policy.facts.snapshot import ExpertFact, LicenseFact, Snapshot
from policy.facts.terms import ANY
from policy.facts.vocabulary import Hierarchy, vocabulary

_FOREVER = 2**53
_FACETS = ("hosted_use", "use_commercial", "derivatives", "distribution_weights")
_GATES = """
forbid(principal, action, resource) unless {
  principal.active && resource.owner.active && resource.listed && resource.base == context.base
  && context.base.active };
forbid(principal, action, resource) unless {
  resource.consent.actions.contains(action) && context.purpose in resource.consent.purpose
  && context.region in resource.consent.region && (resource.consent.commercial || !context.commercial)
  && resource.consent.from <= context.now && context.now < resource.consent.until
  && resource.dataset.owner == resource.owner };
forbid(principal, action, resource) unless {
  (resource.grant.everyone || resource.grant.consumer == principal)
  && resource.grant.from <= context.now && context.now < resource.grant.until };
forbid(principal, action, resource) unless {
  resource.license.hosted_use && resource.dataset.license.hosted_use && context.base.license.hosted_use
  && (!context.commercial || (resource.license.use_commercial && resource.dataset.license.use_commercial
      && context.base.license.use_commercial)) };
"""


class Cedar:
    """A register in Cedar, read once.

    Args:
        snapshot: whose experts each have one consent, one grant, and one dataset of their owner's.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._experts = snapshot.experts
        self._policies = cedarpy.PolicySet.from_str(_GATES + "\n".join(_policies(snapshot)))
        self._entities = cedarpy.Entities.from_json_str(json.dumps(list(_entities(snapshot))))

    def requests(self, asked: Asked) -> list[dict[str, Any]]:
        """One request an expert."""
        context = {
            "base": {"__entity": _uid("Base", asked.base_digest)},
            "purpose": {"__entity": _uid("Purpose", asked.purpose)},
            "region": {"__entity": _uid("Region", asked.region)},
            "commercial": asked.commercial,
            "now": asked.at_us,
        }
        return [
            {
                "principal": _uid("Tenant", asked.tenant),
                "action": _uid("Action", asked.action),
                "resource": _uid("Expert", expert.bundle_digest),
                "context": context,
            }
            for expert in self._experts
        ]

    def permitted(self, requests: Sequence[dict[str, Any]]) -> list[bool]:
        """Which of them Cedar allows, asked in one batch."""
        said = cedarpy.is_authorized_batch(list(requests), self._policies, self._entities)
        return [one.allowed for one in said]

    def permitted_singly(self, requests: Sequence[dict[str, Any]]) -> list[bool]:
        """The same, asked one by one."""
        return [cedarpy.is_authorized(one, self._policies, self._entities).allowed for one in requests]


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}


def _ref(kind: str, name: str) -> dict[str, Any]:
    return {"__entity": _uid(kind, name)}


def _quoted(kind: str, name: str) -> str:
    return f"{kind}::{json.dumps(name)}"


def _entity(kind: str, name: str, attrs: dict[str, Any], parents: Sequence[str] = ()) -> dict[str, Any]:
    return {"uid": _uid(kind, name), "attrs": attrs, "parents": [_uid(kind, one) for one in parents]}


def _entities(snapshot: Snapshot) -> Any:
    words = vocabulary(snapshot.vocabulary_version)
    for kind, hierarchy in (("Purpose", words.purposes), ("Region", words.regions)):
        for term in hierarchy.terms.values():
            yield _entity(kind, term.id, {}, term.parents)
    for tenant in snapshot.tenants:
        yield _entity("Tenant", tenant.slug, {"active": tenant.status == "active"})
    for fact in snapshot.licenses:
        yield _entity("License", fact.key, {facet: getattr(fact, facet) is True for facet in _FACETS})
    for base in snapshot.bases:
        said = {"active": base.status == "active", "license": _ref("License", base.license)}
        yield _entity("Base", base.base_digest, said)
    for expert in snapshot.experts:
        (dataset,) = expert.datasets
        said = {"owner": _ref("Tenant", dataset.tenant), "license": _ref("License", dataset.license)}
        yield _entity("Dataset", dataset.id, said)
        yield _entity("Expert", expert.bundle_digest, _of_expert(snapshot, expert, words.purposes))


def _of_expert(snapshot: Snapshot, expert: ExpertFact, purposes: Hierarchy) -> dict[str, Any]:
    (consent,) = snapshot.consents_by_expert[expert.expert_id]
    (grant,) = snapshot.grants_by_expert[expert.expert_id]
    named = ("infer", "evaluate") if consent.action == ANY else (consent.action,)
    return {
        "owner": _ref("Tenant", expert.tenant),
        "listed": expert.state == "listed",
        "base": _ref("Base", expert.base_digest),
        "license": _ref("License", expert.license),
        "dataset": _ref("Dataset", expert.datasets[0].id),
        "id": expert.expert_id,
        "consent": {
            "actions": [_ref("Action", action) for action in named],
            "purpose": _ref("Purpose", purposes.root if consent.purpose == ANY else consent.purpose),
            "region": _ref("Region", consent.region),
            "commercial": consent.commercial,
            "from": consent.valid_from_us,
            "until": _FOREVER if consent.valid_until_us is None else consent.valid_until_us,
        },
        "grant": {
            "everyone": grant.consumer_tenant == ANY,
            "consumer": _ref("Tenant", grant.consumer_tenant),
            "from": grant.valid_from_us,
            "until": _FOREVER if grant.valid_until_us is None else grant.valid_until_us,
        },
    }


def _policies(snapshot: Snapshot) -> Any:
    for rule in snapshot.rules:
        effect = rule.effect
        when = []
        for kind, field, word in (("Purpose", "purpose", rule.purpose), ("Region", "region", rule.region)):
            if word != ANY:
                term = _quoted(kind, word)
                below = f"context.{field} in {term}"
                # A forbid also hits what contains its word.
                when.append(below if effect == "permit" else f"({below} || {term} in context.{field})")
        if rule.consumer_tenant != ANY:
            when.append(f"principal == {_quoted('Tenant', rule.consumer_tenant)}")
        if rule.expert_id != ANY:
            when.append(f"resource.id == {json.dumps(rule.expert_id)}")
        yield f"{effect}(principal, action, resource) when {{ {' && '.join(when) or 'true'} }};"
    used = {name for expert in snapshot.experts for name in (expert.license, expert.datasets[0].license)}
    for fact in snapshot.licenses:
        if fact.key in used:
            yield from _prohibitions(fact)


def _prohibitions(fact: LicenseFact) -> Any:
    name = _quoted("License", fact.key)
    for word in fact.prohibited_purposes:
        term = _quoted("Purpose", word)
        yield (
            "forbid(principal, action, resource) when { "
            f"(resource.license == {name} || resource.dataset.license == {name}) && "
            f"(context.purpose in {term} || {term} in context.purpose) }};"
        )

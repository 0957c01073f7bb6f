# SPDX-License-Identifier: Apache-2.0
"""Does to a world what a denial says is missing, gate by gate, and nothing else.

Reads codes and cited facts, as a program would; knows no rule of deciding.
"""

from __future__ import annotations

from typing import Any

from worlds import BASE, LICENSES, consent, grant, rule

from policy.deciding.decision import Decision
from policy.deciding.questions import Asked
from policy.deciding.reasons import Reason, is_denial
from policy.facts.snapshot import BaseFact, DatasetFact, ExpertFact, Snapshot, TenantFact


def mended(snapshot: Snapshot, asked: Asked, decision: Decision, *, but: str = "") -> Snapshot:
    """The world after every reason of a denial was met, except those of one gate."""
    facts: dict[str, Any] = {kind: {_id(f): f for f in getattr(snapshot, kind)} for kind in _KINDS}
    expert = facts["experts"][decision.bundle_digest]
    for one in decision.reasons:
        if is_denial(one) and one.gate != but:
            expert = _mend(facts, asked, expert, one)
            facts["experts"][expert.bundle_digest] = expert
    return snapshot.model_copy(update={kind: tuple(known.values()) for kind, known in facts.items()})


_KINDS = ("tenants", "bases", "licenses", "experts", "consents", "grants", "rules")


def _id(fact: Any) -> str:
    names = ("id", "bundle_digest", "slug", "base_digest", "key")
    return str(next(getattr(fact, name) for name in names if hasattr(fact, name)))


def _mend(facts: dict[str, Any], asked: Asked, expert: ExpertFact, why: Reason) -> ExpertFact:  # noqa: PLR0912 - one arm per kind of reason
    use = {"action": asked.action, "purpose": asked.purpose, "region": asked.region}
    code, cited = why.code, why.fact_ids
    if code in ("consent_forbids", "consent_forbids_part", "consent_unreadable"):
        for one in cited:
            facts["consents"].pop(one, None)
    elif code in ("no_consent", "consent_withdrawn", "consent_expired", "consent_not_yet"):
        _say(facts, expert, use, expert.tenant, None)
    elif code == "lineage_missing":
        expert = expert.model_copy(
            update={"datasets": (DatasetFact(id="ds_new", tenant=expert.tenant, license="CC0-1.0"),)}
        )
    elif "dataset" in code:
        datasets = []
        for one in expert.datasets:
            if one.id in cited:
                _say(facts, expert, use, one.tenant, one.id)
                one = one.model_copy(update={"consent": "separate"})  # noqa: PLW2901
            datasets.append(one)
        expert = expert.model_copy(update={"datasets": tuple(datasets)})
    elif why.gate == "grant":
        given = grant(
            80, expert_id=expert.expert_id, tenant=expert.tenant, consumer_tenant=asked.tenant, **use
        )
        facts["grants"]["gra_80"] = given
    elif why.gate == "license":
        facts["licenses"]["CC0-1.0"] = next(fact for fact in LICENSES if fact.key == "CC0-1.0")
        free = tuple(one.model_copy(update={"license": "CC0-1.0"}) for one in expert.datasets)
        expert = expert.model_copy(update={"license": "CC0-1.0", "datasets": free})
        for digest, base in facts["bases"].items():
            facts["bases"][digest] = base.model_copy(update={"license": "CC0-1.0"})
    elif code == "no_permitting_rule":
        facts["rules"]["rul_80"] = rule(80, **use)
    elif why.gate == "rules":
        for one in cited:
            facts["rules"].pop(one, None)
    elif code == "expert_not_listed":
        expert = expert.model_copy(update={"state": "listed"})
    elif code == "other_base":
        expert = expert.model_copy(update={"base_digest": asked.base_digest})
    elif "base" in code:
        facts["bases"][BASE] = BaseFact(base_digest=BASE, name="public", license="CC0-1.0")
    else:
        for slug in cited:
            facts["tenants"][slug] = TenantFact(slug=slug, status="active")
    return expert


def _say(facts: dict[str, Any], expert: ExpertFact, use: Any, tenant: str, about: str | None) -> None:
    number = 80 + len(facts["consents"])
    word = consent(number, expert_id=expert.expert_id, tenant=tenant, dataset_id=about, **use)
    facts["consents"][word.id] = word

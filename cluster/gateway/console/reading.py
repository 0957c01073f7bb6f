# SPDX-License-Identifier: Apache-2.0
"""What each console page looks up before it is shown."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from cluster.gateway.console.forgetting import erasure, erasures
from cluster.gateway.console.render import show_credits
from cluster.gateway.console.reviewing import STATES, around, epoch, expert_names, stops
from cluster.gateway.console.visit import Visit

Values = dict[str, Any]

#: Job states after which nothing moves any more, so that the page stops refreshing.
FINAL_STATES = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A page.

    Attributes:
        path: its address.
        template: file below ``templates``.
        nav: which entry of the navigation it belongs to.
        fetch: looks up what the template names.
    """

    path: str
    template: str
    nav: str
    fetch: Callable[[Visit], Awaitable[Values]]


async def _optional(visit: Visit, operation: str, **fields: Any) -> dict[str, Any] | None:
    """An operation's answer, or None where the person's roles do not open it."""
    return await visit.call(operation, **fields) if visit.may(operation) else None


async def home(visit: Visit) -> Values:
    """What is going on."""
    status, proposed, overdue, stopped = await asyncio.gather(
        visit.call("status.show"),
        visit.call("changes.list", state="proposed", limit=20),
        visit.call("stops.list", overdue=True, limit=100),  # of all stops the oldest
        visit.call("stops.list", overdue=False, limit=100),
    )
    unsigned = overdue["items"] + [row for row in stopped["items"] if row["state"] != "signed"]
    return {"overview": status, "proposed": proposed["items"], "unsigned": unsigned}


async def experts(visit: Visit) -> Values:
    """The catalogue."""
    found = await visit.call("experts.list", limit=500, after=visit.query("after"))
    return {"experts": found["items"], "next": found["next"]}


async def expert(visit: Visit) -> Values:
    """One expert."""
    return {"expert": await visit.call("experts.show", expert_id=visit.request.path_params["expert_id"])}


async def jobs(visit: Visit) -> Values:
    """Datasets and jobs."""
    datasets = await _optional(visit, "datasets.list", limit=500)
    found = await _optional(visit, "jobs.list", limit=100, after=visit.query("after"))
    bases = await visit.call("bases.list", limit=500)
    own = [row for row in (datasets or {"items": []})["items"] if row["tenant"] == visit.session.tenant]
    return {
        "datasets": (datasets or {"items": []})["items"],
        "own_datasets": own,
        "jobs": (found or {"items": []})["items"],
        "next": (found or {"next": None})["next"],
        "bases": bases["items"],
    }


async def job(visit: Visit) -> Values:
    """One job with its curves."""
    job_id = visit.request.path_params["job_id"]
    found, curves = await asyncio.gather(
        visit.call("jobs.show", job_id=job_id), visit.call("jobs.metrics", job_id=job_id)
    )
    return {"job": found, "points": curves["points"], "live": found["state"] not in FINAL_STATES}


async def consents(visit: Visit) -> Values:
    """Consents, with what is needed to give one."""
    found, expiring, catalogue, grants = await asyncio.gather(
        visit.call("consents.list", limit=500, after=visit.query("after")),
        visit.call("consents.expiring", limit=100),
        visit.call("experts.list", limit=500),
        visit.call("grants.list", limit=500),
    )
    names = expert_names(catalogue)
    own = [row for row in catalogue["items"] if row["tenant"] == visit.session.tenant]
    return {
        "consents": found["items"],
        "expiring": expiring["items"],
        "next": found["next"],
        "grants": grants["items"],
        "names": names,
        "own_experts": own,
    }


async def rules(visit: Visit) -> Values:
    """Rules and licenses."""
    found, licenses = await asyncio.gather(
        visit.call("rules.list", limit=500), visit.call("licenses.list", limit=500)
    )
    return {"rules": found["items"], "licenses": licenses["items"]}


async def changes(visit: Visit) -> Values:
    """Changes."""
    state = visit.query("state")
    found = await visit.call("changes.list", state=state, limit=100, after=visit.query("after"))
    return {"changes": found["items"], "next": found["next"], "state": state, "states": STATES}


async def change(visit: Visit) -> Values:
    """One change with its preview."""
    found, catalogue, me = await asyncio.gather(
        visit.call("changes.show", change_id=visit.request.path_params["change_id"]),
        visit.call("experts.list", limit=500),
        visit.call("me.show"),
    )
    names = expert_names(catalogue)
    return await around(visit, found) | {
        "change": found,
        "names": names,
        "own": found["author_id"] == me["principal_id"],
        "sentences": [reads_as(item, names) for item in found["items"]],
    }


async def deployments(visit: Visit) -> Values:
    """Deployments."""
    found, bases = await asyncio.gather(
        visit.call("deployments.list", limit=500, after=visit.query("after")),
        visit.call("bases.list", limit=500),
    )
    return {"deployments": found["items"], "next": found["next"], "bases": bases["items"]}


async def deployment(visit: Visit) -> Values:
    """One deployment with the reason for every expert."""
    found = await visit.call("deployments.show", name=visit.request.path_params["name"])
    composition = found["composition"]
    inside = {row["bundle_digest"] for row in composition["members"]}
    return {
        "deployment": found,
        "included": [row for row in composition["decisions"] if row["bundle_digest"] in inside],
        "excluded": [row for row in composition["decisions"] if row["bundle_digest"] not in inside],
        "own": found["tenant"] == visit.session.tenant,
    }


async def decisions(visit: Visit) -> Values:
    """Logged decisions."""
    epoch = visit.query("epoch")
    found = await visit.call(
        "decisions.list",
        limit=100,
        after=visit.query("after"),
        deployment=visit.query("deployment"),
        epoch=epoch,
    )
    return {"decisions": found["items"], "next": found["next"], "deployment": visit.query("deployment")}


async def decision(visit: Visit) -> Values:
    """One logged decision, replayed when asked."""
    decision_id = visit.request.path_params["decision_id"]
    found = await visit.call("decisions.show", decision_id=decision_id)
    replay = None
    if visit.query("replay"):
        replay = await visit.call("decisions.replay", decision_id=decision_id)
    return {"decision": found, "replay": replay}


async def money(visit: Visit) -> Values:
    """Usage and the ledger."""
    usage = await visit.call("usage.show")
    balances = await _optional(visit, "ledger.balances")
    statements = await _optional(visit, "ledger.statements", limit=100)
    budgets = await _optional(visit, "ledger.budgets")
    return {
        "usage": usage,
        "balances": balances,
        "statements": (statements or {"items": []})["items"],
        "budgets": (budgets or {"items": []})["items"],
    }


async def audit(visit: Visit) -> Values:
    """The audit chain, verified when asked."""
    after = visit.query("after") or "0"
    whole = visit.session.tenant == "platform" and visit.may("audit.records")
    records = await visit.call("audit.records", after=after, limit=100) if whole else None
    report = await visit.call("audit.verify") if visit.query("verify") else None
    return {"records": records, "report": report}


async def api(visit: Visit) -> Values:
    """The table of operations."""
    return {"operations": list(visit.console.operations.values())}


_ITEM_WORDS = {
    "consent.give": "consents to {action} of {expert_id} for {purpose} in {region}, by {recipient}",
    "consent.renew": "lets the consent {consent_id} go on for longer",
    "grant.give": "gives {consumer_tenant} access to {expert_id} for {purpose} in {region}",
    "rule.lift": "takes back the prohibition {rule_id}",
    "rule.permit": "permits {action} of {expert_id} for {purpose} in {region} by {consumer_tenant}: {text}",
    "listing.put": "offers {expert_id} under {license} at {price_micro_per_1k_tokens} credits a 1000 tokens",
    "expert.resume": "lets the expert {expert_id} run again",
    "tenant.resume": "lets the tenant {slug} act again",
    "deployment.put": "runs {name} for {purpose} in {region}, {top_k} experts a token out of {candidates}",
    "license.put": "records the facets of a license",
}
_EVERYTHING = {
    "expert_id": "all experts",
    "candidates": "all experts",
    "region": "all regions",
    "recipient": "everyone",
    "consumer_tenant": "everyone",
}
_SLOT = re.compile(r"{([a-z0-9_]+)}")


def reads_as(item: dict[str, Any], names: dict[str, str]) -> str:
    """An edit as a sentence for people; everything it says stands in the edit itself."""
    shown = {name: _word(name, value, names) for name, value in item.items()}
    sentence = _SLOT.sub(lambda slot: shown.get(slot[1], "?"), _ITEM_WORDS.get(item["kind"], item["kind"]))
    if "commercial" in item:
        sentence += ", commercial use included" if item["commercial"] else ", not for commercial use"
    return f"This {sentence}."


def _word(name: str, value: Any, names: dict[str, str]) -> str:
    if value == "*":
        return _EVERYTHING.get(name, "all")
    if name == "price_micro_per_1k_tokens":
        return show_credits(value)
    if isinstance(value, list):
        return ", ".join(names.get(str(one), str(one)) for one in value)
    return names.get(str(value), str(value))


VIEWS = (
    View(path="/console/", template="home.html", nav="home", fetch=home),
    View(path="/console/experts", template="experts.html", nav="experts", fetch=experts),
    View(path="/console/experts/{expert_id}", template="expert.html", nav="experts", fetch=expert),
    View(path="/console/jobs", template="jobs.html", nav="jobs", fetch=jobs),
    View(path="/console/jobs/{job_id}", template="job.html", nav="jobs", fetch=job),
    View(path="/console/jobs/{job_id}/live", template="_job_live.html", nav="jobs", fetch=job),
    View(path="/console/consents", template="consents.html", nav="consents", fetch=consents),
    View(path="/console/erasures", template="erasures.html", nav="consents", fetch=erasures),
    View(path="/console/erasures/{erasure_id}", template="erasure.html", nav="consents", fetch=erasure),
    View(path="/console/rules", template="rules.html", nav="rules", fetch=rules),
    View(path="/console/changes", template="changes.html", nav="changes", fetch=changes),
    View(path="/console/changes/{change_id}", template="change.html", nav="changes", fetch=change),
    View(path="/console/stops", template="stops.html", nav="changes", fetch=stops),
    View(path="/console/epochs/{epoch}", template="epoch.html", nav="changes", fetch=epoch),
    View(path="/console/deployments", template="deployments.html", nav="deployments", fetch=deployments),
    View(path="/console/deployments/{name}", template="deployment.html", nav="deployments", fetch=deployment),
    View(path="/console/decisions", template="decisions.html", nav="decisions", fetch=decisions),
    View(path="/console/decisions/{decision_id}", template="decision.html", nav="decisions", fetch=decision),
    View(path="/console/usage", template="usage.html", nav="usage", fetch=money),
    View(path="/console/audit", template="audit.html", nav="audit", fetch=audit),
    View(path="/console/api", template="api.html", nav="api", fetch=api),
)

# SPDX-License-Identifier: Apache-2.0
"""The demo's acts, each over HTTP with the key of the person whose act it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.corpus import Domain
from examples.demo.cast import CONSUMER, ENDPOINTS, LEAVER, OWNERS, Owner
from examples.demo.people import People, agree
from examples.demo.results import Results
from examples.demo.streams import StreamSet

_DONE = frozenset({"succeeded", "failed", "cancelled"})


class ActFailed(RuntimeError):
    """Something that the demo promises did not happen."""


def submit_jobs(people: People, domains: dict[str, Domain], recipe: dict[str, Any]) -> dict[str, str]:
    """Every owner uploads its text and submits a job; tenant → job id."""
    jobs = {}
    for owner in OWNERS:
        domain = domains[owner.domain]
        client = people.owners[owner.slug]
        dataset = client.upload(
            "datasets.upload",
            domain.files["dataset"],
            name=f"{owner.domain}-text",
            license=domain.license,
            description=domain.title,
        )
        job = client.call(
            "jobs.submit", name=f"{owner.domain}-expert", dataset_id=dataset["id"], recipe=recipe
        )
        jobs[owner.slug] = str(job["id"])
    return jobs


def follow_jobs(
    people: People,
    jobs: dict[str, str],
    results: Results,
    show: Callable[[str, dict[str, Any], float | None], None],
) -> dict[str, dict[str, Any]]:
    """Watches all jobs until they end; tenant → expert.

    Raises:
        ActFailed: a job did not succeed.
    """
    open_jobs = dict(jobs)
    seen: dict[str, int] = dict.fromkeys(jobs, 0)
    while open_jobs:
        for slug, job_id in list(open_jobs.items()):
            client = people.owners[slug]
            job = client.call("jobs.show", job_id=job_id)
            curve = client.call("jobs.metrics", job_id=job_id, name="loss", after_step=seen[slug])
            points = [(int(point["step"]), float(point["value"])) for point in curve["points"]]
            results.losses.setdefault(str(job["name"]), []).extend(points)
            if points:
                seen[slug] = points[-1][0]
            show(slug, job, points[-1][1] if points else None)
            if job["state"] in _DONE:
                del open_jobs[slug]
                if job["state"] != "succeeded":
                    raise ActFailed(f"The job of {slug} {job['state']}: {job.get('error_sentence')}")
        time.sleep(1.0)
    experts = people.compliance.call("experts.list", limit=100)["items"]
    return {str(expert["tenant"]): expert for expert in experts}


def permit(people: People, experts: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rules, listings, consents and grants, each by its own people; tenant → its consents."""
    agree(
        people.compliance,
        people.reviewer,
        "House rules",
        [
            {"kind": "rule.permit", "purpose": "research", "text": "Research is in scope."},
            {
                "kind": "rule.permit",
                "purpose": "software-development",
                "text": "Tools for developers are in scope.",
            },
            {"kind": "rule.permit", "purpose": "customer-support", "text": "Support desks are in scope."},
        ],
    )
    for owner in OWNERS:
        expert = experts[owner.slug]
        agree(people.owners[owner.slug], people.compliance, f"Terms of {owner.title}", _terms(owner, expert))
    consents = people.compliance.call("consents.list", limit=500)["items"]
    return {
        owner.slug: [row for row in consents if row.get("tenant") == owner.slug and row["state"] == "given"]
        for owner in OWNERS
    }


def deploy(people: People, base_digest: str, *, top_k: int) -> None:
    """One endpoint per purpose, asked for by the consumer and approved by compliance."""
    for endpoint in ENDPOINTS:
        item = {
            "kind": "deployment.put",
            "name": endpoint.name,
            "tenant": CONSUMER,
            "base_digest": base_digest,
            "purpose": endpoint.purpose,
            "region": endpoint.region,
            "commercial": endpoint.commercial,
            "top_k": top_k,
        }
        agree(people.developer, people.compliance, f"Endpoint {endpoint.name}", [item])


def verdicts(people: People) -> dict[str, dict[str, tuple[str, str]]]:
    """Who may answer where, and the reason for everybody who may not."""
    names = {row["id"]: row["name"] for row in people.compliance.call("experts.list", limit=100)["items"]}
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for endpoint in ENDPOINTS:
        shown = people.compliance.call("deployments.show", name=endpoint.name)
        found[endpoint.name] = {
            names.get(decision["expert_id"], decision["expert_id"]): (decision["verdict"], _reason(decision))
            for decision in shown["composition"]["decisions"]
        }
    return found


def wait_until_served(people: People, *, timeout_s: float = 60.0) -> int:
    """Waits until a model host runs the newest epoch; the epoch."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        epoch = int(people.operator.call("epochs.current")["epoch"])
        if people.operator.call("epochs.acknowledgements", epoch=epoch)["items"]:
            return epoch
        time.sleep(0.2)
    raise ActFailed("No model host acknowledged the newest epoch.")


def withdraw_while_running(
    people: People,
    streams: StreamSet,
    prompts: list[str],
    consents: dict[str, list[dict[str, Any]]],
    experts: dict[str, dict[str, Any]],
    results: Results,
    *,
    before_tokens: int,
) -> None:
    """Opens the streams, lets the leaver withdraw in the middle, and waits for every stream to end.

    Raises:
        ActFailed: a stream did not get going.
    """
    results.withdrawn = str(experts[LEAVER]["name"])
    streams.open(prompts)
    if not streams.wait_until_each_has(before_tokens, timeout_s=90):
        raise ActFailed(
            "The streams did not get going: " + str([stream.failed for stream in streams.streams])
        )
    open_now = streams.still_open()
    owner = people.owners[LEAVER]
    [consent] = (row for row in consents[LEAVER] if not row["dataset_id"])  # one consent covers every use
    publication = owner.call("consents.withdraw", consent_id=consent["id"])
    results.withdrawn_at_s = time.monotonic() - streams.started
    streams.join(timeout_s=180)
    results.streams = streams.traces(withdrawn=results.withdrawn, epoch=int(publication["epoch"]))
    results.proofs.append(
        (
            f"The owner of {results.withdrawn} withdrew with one request while {open_now} streams ran",
            f"epoch {publication['epoch']}",
        )
    )


def settle(people: People) -> list[dict[str, Any]]:
    """Settles and returns one row per expert."""
    people.operator.call("ledger.settle")
    return list(people.operator.call("usage.show")["items"])


def prompts_of(domain: Domain, count: int) -> list[str]:
    """Beginnings of held-out documents, one per stream."""
    from model_core.text.documents import read_documents

    documents = read_documents(Path(domain.files["heldout"]))
    return [documents[index % len(documents)].text[:160] for index in range(count)]


def _terms(owner: Owner, expert: dict[str, Any]) -> list[dict[str, Any]]:
    expert_id = expert["id"]
    items: list[dict[str, Any]] = [
        {
            "kind": "listing.put",
            "expert_id": expert_id,
            "price_micro_per_1k_tokens": owner.price_micro,
            "license": owner.license,
        }
    ]
    for use in owner.consents:
        shared = {"purpose": use.purpose, "commercial": use.commercial, "region": use.region}
        items.append({"kind": "consent.give", "expert_id": expert_id} | shared)
        items += [
            {"kind": "consent.give", "expert_id": expert_id, "dataset_id": dataset_id} | shared
            for dataset_id in expert["dataset_ids"]
        ]
    items += [
        {
            "kind": "grant.give",
            "expert_id": expert_id,
            "consumer_tenant": CONSUMER,
            "purpose": grant.purpose,
            "commercial": grant.commercial,
        }
        for grant in owner.grants
    ]
    return items


def _reason(decision: dict[str, Any]) -> str:
    if decision["verdict"] == "permit":
        return "consent, grant, license and rules all hold"
    said = decision["reasons"]
    against = [str(one["sentence"]) for one in said if not one["code"].endswith(("_holds", "_permits"))]
    return " ".join(against[:2])

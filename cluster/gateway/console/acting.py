# SPDX-License-Identifier: Apache-2.0
"""What each console form does: which operation it calls, and where the person lands afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.gateway.console.forms import Converter, amount, day, document, moment, settings, whole, words


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """A form.

    Attributes:
        path: its address.
        operation: what it calls; placeholders of the path are fields of it.
        to: where the person lands; may name the path's placeholders and the answer's ``id``.
        note: key of the sentence shown there.
        converters: form field → (operation field, how to read it).
        checkboxes: fields that are False when absent.
    """

    path: str
    operation: str
    to: str
    note: str
    converters: Mapping[str, tuple[str, Converter]] = field(default_factory=dict)
    checkboxes: tuple[str, ...] = ()


_DAYS: dict[str, tuple[str, Converter]] = {
    "valid_from": ("valid_from_us", day),
    "valid_until": ("valid_until_us", day),
}

ACTS = (
    Act(
        path="/console/experts/{expert_id}/suspend",
        operation="experts.suspend",
        to="/console/experts/{expert_id}",
        note="suspended",
    ),
    Act(
        path="/console/experts/{expert_id}/resume",
        operation="experts.resume",
        to="/console/changes/{id}",
        note="drafted",
    ),
    Act(
        path="/console/listings/{expert_id}",
        operation="listings.put",
        to="/console/changes/{id}",
        note="drafted",
        converters={"price": ("price_micro_per_1k_tokens", amount)},
    ),
    Act(
        path="/console/jobs",
        operation="jobs.submit",
        to="/console/jobs/{id}",
        note="submitted",
        converters={"recipe": ("recipe", settings)},
    ),
    Act(
        path="/console/jobs/{job_id}/cancel",
        operation="jobs.cancel",
        to="/console/jobs/{job_id}",
        note="cancelling",
    ),
    Act(
        path="/console/consents",
        operation="consents.give",
        to="/console/changes/{id}",
        note="drafted",
        converters=_DAYS,
        checkboxes=("commercial",),
    ),
    Act(
        path="/console/consents/{consent_id}/withdraw",
        operation="consents.withdraw",
        to="/console/consents",
        note="withdrawn",
    ),
    Act(
        path="/console/consents/{consent_id}/renew",
        operation="consents.renew",
        to="/console/changes/{id}",
        note="drafted",
        converters=_DAYS,
    ),
    Act(path="/console/erasures", operation="erasures.request", to="/console/erasures/{id}", note="asked"),
    Act(
        path="/console/erasures/{erasure_id}/approve",
        operation="erasures.approve",
        to="/console/erasures/{erasure_id}",
        note="erasing",
    ),
    Act(
        path="/console/erasures/{erasure_id}/reject",
        operation="erasures.reject",
        to="/console/erasures/{erasure_id}",
        note="rejected",
    ),
    Act(path="/console/holds", operation="holds.set", to="/console/erasures", note="held"),
    Act(path="/console/holds/{hold_id}/lift", operation="holds.lift", to="/console/erasures", note="lifted"),
    Act(
        path="/console/notifications/{notification_id}/acknowledge",
        operation="notifications.acknowledge",
        to="/console/erasures",
        note="noted",
    ),
    Act(
        path="/console/grants",
        operation="grants.give",
        to="/console/changes/{id}",
        note="drafted",
        converters=_DAYS,
        checkboxes=("commercial",),
    ),
    Act(
        path="/console/grants/{grant_id}/revoke",
        operation="grants.revoke",
        to="/console/consents",
        note="revoked",
    ),
    Act(path="/console/rules/forbid", operation="rules.forbid", to="/console/rules", note="forbidden"),
    Act(path="/console/rules/permit", operation="rules.permit", to="/console/changes/{id}", note="drafted"),
    Act(
        path="/console/rules/{rule_id}/remove", operation="rules.remove", to="/console/rules", note="removed"
    ),
    Act(
        path="/console/changes/{change_id}/approve",
        operation="changes.approve",
        to="/console/changes/{change_id}",
        note="approved",
    ),
    Act(
        path="/console/changes/{change_id}/reject",
        operation="changes.reject",
        to="/console/changes/{change_id}",
        note="rejected",
    ),
    Act(
        path="/console/changes/{change_id}/edit",
        operation="changes.edit",
        to="/console/changes/{change_id}",
        note="saved",
        converters={
            "version": ("version", whole),
            "items": ("items", document),
            "effective_at": ("effective_at_us", moment),
        },
    ),
    Act(
        path="/console/changes/{change_id}/submit",
        operation="changes.submit",
        to="/console/changes/{change_id}",
        note="drafted",
        converters={"version": ("version", whole)},
    ),
    Act(
        path="/console/changes/{change_id}/withdraw",
        operation="changes.withdraw",
        to="/console/changes/{change_id}",
        note="given_up",
    ),
    Act(
        path="/console/changes/{change_id}/revise",
        operation="changes.revise",
        to="/console/changes/{id}",
        note="revised",
    ),
    Act(
        path="/console/changes/{change_id}/rollback",
        operation="changes.rollback",
        to="/console/changes",
        note="rolled_back",
    ),
    Act(path="/console/stops", operation="stops.create", to="/console/stops", note="stopped"),
    Act(path="/console/stops/{stop_id}/sign", operation="stops.sign", to="/console/stops", note="signed"),
    Act(
        path="/console/deployments",
        operation="deployments.put",
        to="/console/changes/{id}",
        note="drafted",
        converters={"candidates": ("candidates", words)},
        checkboxes=("commercial",),
    ),
    Act(
        path="/console/deployments/{name}/remove",
        operation="deployments.remove",
        to="/console/deployments",
        note="removed",
    ),
    Act(path="/console/usage/settle", operation="ledger.settle", to="/console/usage", note="settled"),
)

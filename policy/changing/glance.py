# SPDX-License-Identifier: Apache-2.0
"""What a draft does to every deployment, by expert: the quick look that every reviewer gets.

Pure: two snapshots in, a preview out. Knows neither logged decisions nor money (``policy.preview``).
"""

from __future__ import annotations

from policy.deciding.composition import Composition
from policy.deciding.decision import Decision
from policy.deciding.reasons import is_denial
from policy.deciding.remembered import remembered
from policy.facts.snapshot import Snapshot
from policy.records.changes import DeploymentPreview, Preview


def compare(before: Snapshot, after: Snapshot, at_us: int) -> Preview:
    """Compares what the deployments of two snapshots run.

    Args:
        before: in force.
        after: the draft.
        at_us: the moment that both are asked about, or the draft's own if that is later.
    """
    names = sorted(set(before.deployments_by_name) | set(after.deployments_by_name))
    moment = max(at_us, after.published_at_us)
    # One snapshot after the other: the memory turns from one to the next, and not back and forth.
    olds = {name: composed(before, name, moment) for name in names}
    news = {name: composed(after, name, moment) for name in names}
    rows = []
    for name in names:
        had, has = expert_ids(olds[name]), expert_ids(news[name])
        rows.append(
            DeploymentPreview(
                deployment=name,
                before=had,
                after=has,
                gained=tuple(sorted(set(has) - set(had))),
                lost=tuple(sorted(set(had) - set(has))),
                reasons=_denials(news[name]),
            )
        )
    return Preview(epoch_base=before.epoch, deployments=tuple(rows))


def composed(snapshot: Snapshot, name: str, at_us: int) -> Composition | None:
    """What a deployment runs, or None where the snapshot holds none of that name."""
    if name not in snapshot.deployments_by_name:
        return None
    return remembered().compose(snapshot, name, at_us)


def expert_ids(composition: Composition | None) -> tuple[str, ...]:
    """The members by expert id, in the composition's order."""
    return () if composition is None else tuple(member.expert_id for member in composition.members)


def _denials(composition: Composition | None) -> dict[str, str]:
    if composition is None:
        return {}
    denied = [decision for decision in composition.decisions if decision.verdict == "deny"]
    return {decision.expert_id: _first(decision) for decision in denied}


def _first(decision: Decision) -> str:
    """The sentence of the first reason that denies."""
    return next((one.sentence for one in decision.reasons if is_denial(one)), "")

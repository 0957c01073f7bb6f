# SPDX-License-Identifier: Apache-2.0
"""Logged decisions, and what came of asking again."""

from __future__ import annotations

from typing import Any

from policy.deciding.composition import Composition
from policy.records.record import Record


class VerdictRecord(Record):
    """What a logged decision says of one expert."""

    expert_id: str
    verdict: str
    outcome: str
    code: str


class DecisionRecord(Record):
    """One logged answer."""

    id: str
    epoch: int
    deployment: str
    consumer_tenant: str
    question: dict[str, Any]
    output_digest: str
    engine_version: str
    at_us: int
    verdicts: tuple[VerdictRecord, ...]
    composition: Composition


class ReplayResult(Record):
    """A logged answer beside the one that the same snapshot and question give now."""

    decision_id: str
    equal: bool
    before: str
    after: str

# SPDX-License-Identifier: Apache-2.0
"""Consents, with what happened to them."""

from __future__ import annotations

from policy.facts.snapshot import ConsentFact
from policy.records.record import Record


class ConsentEvent(Record):
    """Something that happened to a consent."""

    event: str
    at_us: int
    epoch: int
    principal_id: str


class ConsentRecord(ConsentFact):
    """A consent with its history.

    Attributes:
        record_id: its consent record; a renewed consent has the same one.
        status: where that record stands; only ``given`` and ``renewed`` are valid.
    """

    at_us: int
    events: tuple[ConsentEvent, ...]
    record_id: str = ""
    status: str = "unknown"

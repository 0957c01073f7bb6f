# SPDX-License-Identifier: Apache-2.0
"""Puts what was found about the chain, the rows and the acts into one report.

Knows nothing of where records and rows came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

from policy.auditing import recomputing, verifying
from policy.auditing.verifying import Bad, RowsReport
from policy.records import AuditReport, Checkpoint

UNPROVEN: Final = "tail not proven: without a checkpoint, records cut off at the end are not missed."

_NAMED: Final = 20


def with_rows(
    report: AuditReport,
    held: RowsReport,
    checkpoints: Sequence[Checkpoint],
    recomputed: Iterable[Bad],
) -> AuditReport:
    """The report of a chain that holds, together with what is known of the rows.

    Args:
        report: on the audit chain.
        held: on the rows.
        checkpoints: whose signatures hold.
        recomputed: what does not follow from the acts; read only where the rows hold.
    """
    known = {"rows": held.rows, "seals": held.seals, "seals_root": held.root}
    for point in sorted(checkpoints, key=lambda point: point.seals):
        if point.seals > held.seals and not held.bad:
            bad = Bad(seal=held.seals + 1, table="seals", key=str(held.seals + 1), reason="seals_truncated")
            return _failed(report, (bad,), known)
        if point.seals and not held.bad and held.heads.get(point.seals) != point.seals_root:
            bad = Bad(seal=point.seals, table="seals", key=str(point.seals), reason="seals_rewritten")
            return _failed(report, (bad,), known)
    found = held.bad or tuple(islice(recomputed, _NAMED))
    return _failed(report, found, known) if found else report.model_copy(update=known)


def sentence_of(bad: Bad) -> str:
    """What is wrong with a record, for people."""
    if bad.reason in recomputing.SENTENCES:
        return f"{bad.table} {bad.key}: {recomputing.SENTENCES[bad.reason]}."
    return verifying.sentence_of(bad)


def _failed(report: AuditReport, found: Sequence[Bad], known: Mapping[str, object]) -> AuditReport:
    first = found[0]
    return report.model_copy(
        update={
            **known,
            "ok": False,
            "first_bad": int(first.key) if first.table == "audit" else None,
            "reason": first.reason,
            "tail": "not proven",
            "bad": tuple(f"{bad.table} {bad.key}" for bad in found[:_NAMED]),
            "sentence": sentence_of(first),
        }
    )

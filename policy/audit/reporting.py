# SPDX-License-Identifier: Apache-2.0
"""Puts what was found about the chain, the rows and the acts into one report.

Knows nothing of where records and rows came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

from policy.audit import recomputing, verifying
from policy.audit.verifying import Bad, RowsReport
from policy.records.audit import AuditReport

UNPROVEN: Final = "tail not proven: without a checkpoint, records cut off at the end are not missed."

_NAMED: Final = 20


def with_rows(
    report: AuditReport,
    held: RowsReport,
    roots: Mapping[int, str],
    recomputed: Iterable[Bad],
) -> AuditReport:
    """The report of a chain that holds, together with what is known of the rows.

    Args:
        report: on the audit chain.
        held: on the rows.
        roots: of kept checkpoints, by the number of seals that they count.
        recomputed: what does not follow from the acts; read only where the rows hold.
    """
    known = {"rows": held.rows, "seals": held.seals, "seals_root": held.root}
    for seals, root in sorted(() if held.bad else roots.items()):
        if seals > held.seals:
            bad = Bad(seal=held.seals + 1, table="seals", key=str(held.seals + 1), reason="seals_truncated")
            return _failed(report, (bad,), known)
        if seals and held.heads.get(seals) != root:
            bad = Bad(seal=seals, table="seals", key=str(seals), reason="seals_rewritten")
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
            "first_bad": int(first.key) if first.table == "audit" and first.key.isdigit() else None,
            "reason": first.reason,
            "tail": "not proven",
            "bad": tuple(f"{bad.table} {bad.key}" for bad in found[:_NAMED]),
            "sentence": sentence_of(first),
        }
    )

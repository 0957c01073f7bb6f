# SPDX-License-Identifier: Apache-2.0
"""The whole table: every operation by its name. Whatever is not in it cannot be asked of the marketplace."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from cluster.operations import (
    accounts,
    acknowledging,
    bases,
    changes,
    compositions,
    consent_records,
    consents,
    datasets,
    decisions,
    deployments,
    drafting,
    epochs,
    erasure,
    evidence,
    exchange,
    experts,
    exports,
    history,
    holds,
    impact,
    jobs,
    money,
    notices,
    oversight,
    stopping,
    terms,
)
from cluster.operations.table import Operation

_ROOMS = (
    accounts,
    bases,
    experts,
    datasets,
    jobs,
    terms,
    consents,
    exchange,
    notices,
    consent_records,
    erasure,
    holds,
    changes,
    drafting,
    stopping,
    impact,
    epochs,
    acknowledging,
    deployments,
    compositions,
    decisions,
    exports,
    history,
    money,
    oversight,
    evidence,
)

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {row.name: row for room in _ROOMS for row in room.ROWS}
)

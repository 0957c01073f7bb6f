# SPDX-License-Identifier: Apache-2.0
"""What an office would have said about a request, for tests that have no office."""

from __future__ import annotations

from typing import Any

from cluster.office.protocol import Admission


def admitted(request_id: str = "r", **changes: Any) -> Admission:
    """An admission to deployment ``d`` of base ``b`` at epoch 1, with room for a hundred tokens."""
    fields: dict[str, Any] = {
        "request_id": request_id,
        "deployment": "d",
        "base_digest": "b",
        "tenant": "t",
        "principal_id": "p",
        "epoch": 1,
        "composition_digest": "c",
        "reserved_tokens": 100,
    }
    return Admission(**(fields | changes))

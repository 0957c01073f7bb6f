# SPDX-License-Identifier: Apache-2.0
"""What the office does by itself every minute: notes whose consent ran out, and goes on with erasures.

Nothing waits for it. A consent ends at its own moment, whoever writes that down and whenever; what is being
erased serves nobody since it was approved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policy.publishing.publication import PLATFORM_ACTOR

if TYPE_CHECKING:
    from cluster.office.desk import Desk


def note_expired(desk: Desk) -> list[str]:
    """Completes the records of consents whose time is over; answers the ids of the consents."""
    noted = desk.consents.note_expired()
    for consent_id in noted:
        desk.audit.append(PLATFORM_ACTOR, "consents.expire", f"consents/{consent_id}", {})
    return noted

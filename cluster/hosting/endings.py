# SPDX-License-Identifier: Apache-2.0
"""Why an answer ends before its time, in a stable code and a sentence. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cluster.hosting.messages import Ended

#: By cause: those of the register's news, and what a host finds in its roster.
SENTENCES: Final[Mapping[str, str]] = {
    "deployment_closed": "The deployment was closed while the request was answered; see its register entry.",
    "deployment_denied": "Nothing may answer for this deployment any more; look at its reasons.",
    "expert_withdrawn": "An expert left while its tokens were about to be released; ask again.",
    "key_revoked": "The API key was revoked while the request was answered; use another key.",
    "key_expired": "The API key expired while the request was answered; ask for another key.",
    "tenant_suspended": "The tenant was suspended while the request was answered; ask the platform.",
    "budget_spent": "The budget no longer covers the request; have it raised before asking again.",
}


def ended(cause: str) -> Ended:
    """What the client is told; a cause of a later release is told by its code alone."""
    return Ended(code=cause, sentence=SENTENCES.get(cause, "The request was stopped while it was answered."))

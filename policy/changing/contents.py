# SPDX-License-Identifier: Apache-2.0
"""What a change says, in the bytes that an approval signs.

The digest covers the id, so that no approval fits a second change, and the moment of publication, so that
whoever approves approves when. Knows nothing of states.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import TypeAdapter

from model_core.packing.canonical import canonical_bytes, digest_bytes
from policy.errors import InvalidChange
from policy.records.items import ChangeItem

MAX_ITEMS = 100
#: A moment further away than this is more likely a mistake than a plan.
LONGEST_WAIT_US = 400 * 24 * 3600 * 1_000_000

_ITEMS: TypeAdapter[tuple[ChangeItem, ...]] = TypeAdapter(tuple[ChangeItem, ...])


def change_digest(
    change_id: str, title: str, author_id: str, items: bytes, effective_at_us: int | None = None
) -> str:
    """What an approval signs."""
    document = {"id": change_id, "title": title, "author": author_id, "items": json.loads(items)}
    # Left out where it says what it always said, so that changes of earlier releases keep their digests.
    if effective_at_us is not None:
        document["effective_at_us"] = effective_at_us
    return digest_bytes(canonical_bytes(document))


def write_items(items: Sequence[ChangeItem]) -> bytes:
    """The edits as canonical bytes."""
    return canonical_bytes([item.model_dump(mode="json") for item in items])


def read_items(document: str) -> tuple[ChangeItem, ...]:
    """What ``write_items`` wrote."""
    return _ITEMS.validate_json(document)


def check_form(title: str, items: Sequence[ChangeItem], effective_at_us: int | None, time_us: int) -> str:
    """Refuses what no register could make sense of, and returns the title as it is kept.

    Raises:
        InvalidChange: no title, no edits, too many, or a moment that is over or too far away.
    """
    if not title.strip() or not 1 <= len(items) <= MAX_ITEMS:
        raise InvalidChange(f"A change needs a title and between 1 and {MAX_ITEMS} edits.")
    if effective_at_us is not None and not time_us < effective_at_us <= time_us + LONGEST_WAIT_US:
        raise InvalidChange(
            "The moment of publication lies in the past or more than 400 days ahead; leave it out to publish "
            "with the approval.",
            effective_at_us=effective_at_us,
            time_us=time_us,
        )
    return title.strip()

# SPDX-License-Identifier: Apache-2.0
"""Moments as other vocabularies write them, in whole microseconds since the Unix epoch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_US: Final = 2**53 - 1


def moment_us(text: str) -> int | None:
    """The microsecond of an RFC 3339 text with an offset; None for anything else, or too far off."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None or "T" not in text.upper():
        return None
    at_us = (moment - _EPOCH) // timedelta(microseconds=1)
    return at_us if 0 <= at_us < _LAST_US else None


def text_of_moment(at_us: int) -> str:
    """The text of a moment; ``moment_us`` reads it back."""
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat()

# SPDX-License-Identifier: Apache-2.0
"""The life of a consent record as a pure function over its events.

Events and statuses are those of the Data Privacy Vocabulary (as used by ISO/IEC TS 27560). Only a record
that was given or renewed is valid; whatever is not known is not. Decisions do not read this: they rest on the
words of the register, which end by themselves. Tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, Literal, get_args

Event = Literal[
    "requested",
    "refused",
    "given",
    "renewed",
    "withdrawn",
    "revoked",
    "expired",
    "invalidated",
]
Status = Literal["unknown", Event]

EVENTS: Final[tuple[Event, ...]] = get_args(Event)
"""``withdrawn`` is the owner's own act, ``revoked`` that of the platform's staff, ``invalidated`` a finding
that the consent was never good, ``expired`` a note that its time has run out."""

VALID: Final[frozenset[Status]] = frozenset({"given", "renewed"})

_ENDS: Final[frozenset[Event]] = frozenset({"renewed", "withdrawn", "revoked", "expired", "invalidated"})
_NEXT: Final[Mapping[Status, frozenset[Event]]] = MappingProxyType(
    {
        "unknown": frozenset({"requested", "given"}),
        "requested": frozenset({"given", "refused", "invalidated"}),
        "refused": frozenset({"requested"}),
        "given": _ENDS,
        "renewed": _ENDS,
        "expired": frozenset({"requested", "renewed", "invalidated"}),
        "withdrawn": frozenset({"invalidated"}),
        "revoked": frozenset({"invalidated"}),
        "invalidated": frozenset(),
    }
)


def may_follow(status: str, event: str) -> bool:
    """Whether an event may happen to a record of this status; words that are not known may not."""
    return event in _NEXT.get(status, frozenset())  # type: ignore[call-overload]


def status_after(events: Iterable[str]) -> Status:
    """The status that a record's events, oldest first, lead to.

    A history that breaks the rules, or holds a word that this release does not know, is ``unknown``: it must
    not be read as a permission.
    """
    status: Status = "unknown"
    for event in events:
        if not may_follow(status, event):
            return "unknown"
        status = event  # type: ignore[assignment]
    return status


def is_valid(status: str) -> bool:
    """Whether a record of this status stands as consent."""
    return status in VALID

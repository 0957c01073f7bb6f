# SPDX-License-Identifier: Apache-2.0
"""Ways to get the protocol wrong, with bounds in which each shows, and where the right one holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from protocol_model import FIRST, Bounds, Content, Rules

BOTH: Final[Content] = (("A", None), ("B", None))
ONLY_B: Final[Content] = (("B", None),)
#: Expert A is withdrawn and permitted again.
WITHDRAWN: Final = (BOTH, ONLY_B, BOTH)
#: Expert A may be used until the second tick, then, by another epoch, until the fourth.
BOUNDED: Final[tuple[Content, ...]] = (
    (("A", FIRST + 2), ("B", None)),
    (("A", FIRST + 4), ("B", None)),
)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A wrong protocol.

    Attributes:
        says: what is wrong with it.
        rules: the protocol.
        bounds: where to look.
        breaks: the property that must be found broken.
    """

    says: str
    rules: Rules
    bounds: Bounds
    breaks: str


_LATE: Final = "a token of a forbidden expert was released after commit and the length of a lease"
_NO_LEASE: Final = "a token was released without a lease"
_KEPT: Final = "a step that ended without a lease was kept"
_OVERRUN: Final = "a time bound was overrun"
_FELL: Final = "an epoch fell at a host"

MUTANTS: Final = (
    Mutant(
        says="the lease runs from the moment the answer came",
        rules=Rules(from_sending=False),
        bounds=Bounds(script=WITHDRAWN[:1], asks=1),
        breaks=_KEPT,
    ),
    Mutant(
        says="the lease is not looked at again before release",
        rules=Rules(recheck=False),
        bounds=Bounds(script=WITHDRAWN[:2], asks=1),
        breaks=_NO_LEASE,
    ),
    Mutant(
        says="a step that ended without a lease is not discarded",
        rules=Rules(discard=False),
        bounds=Bounds(script=WITHDRAWN[:2], asks=1),
        breaks=_KEPT,
    ),
    Mutant(
        says="neither: what was computed is released, lease or not",
        rules=Rules(recheck=False, discard=False),
        bounds=Bounds(script=WITHDRAWN[:2], asks=1),
        breaks=_LATE,
    ),
    Mutant(
        says="an epoch is acknowledged when it is heard, before the masks hold",
        rules=Rules(ack_after_mask=False),
        bounds=Bounds(script=WITHDRAWN[:2], asks=1),
        breaks="an epoch was acknowledged before its masks held",
    ),
    Mutant(
        says="tokens that wait for their release survive a change of the set",
        rules=Rules(voids_waiting_tokens=False),
        bounds=Bounds(script=WITHDRAWN[:2], asks=1),
        breaks="an epoch was acknowledged before its masks held",
    ),
    Mutant(
        says="a lower epoch is followed",
        rules=Rules(refuses_lower=False),
        bounds=Bounds(script=WITHDRAWN[:2], asks=1),
        breaks=_FELL,
    ),
    Mutant(
        says="a host that starts anew has forgotten the highest epoch",
        rules=Rules(keeps_floor=False),
        bounds=Bounds(script=WITHDRAWN[:2], asks=1, crashes=1, restores=True),
        breaks=_FELL,
    ),
    Mutant(
        says="a restored register that has caught up is followed",
        rules=Rules(checks_past=False),
        bounds=Bounds(script=WITHDRAWN, asks=1, restores=True),
        breaks="a host followed a register with another past",
    ),
    Mutant(
        says="an older answer lengthens a newer lease",
        rules=Rules(older_answers_change_nothing=False),
        bounds=Bounds(script=WITHDRAWN[:1]),
        breaks=_KEPT,
    ),
    Mutant(
        says="the lease is renewed before the masks hold",
        rules=Rules(masks_before_renewal=False),
        bounds=Bounds(script=WITHDRAWN[:2], asks=1),
        breaks=_LATE,
    ),
    Mutant(
        says="the lease is renewed by news of a stop before the stream ends",
        rules=Rules(stops_before_renewal=False),
        bounds=Bounds(script=WITHDRAWN[:1], asks=1, stops=True),
        breaks="a token was released after the stop and the length of a lease",
    ),
    Mutant(
        says="a boot clock is taken to be as fast as the office's",
        rules=Rules(allows_for_drift=False),
        bounds=Bounds(script=WITHDRAWN[:1], asks=1, lags=True),
        breaks=_KEPT,
    ),
    Mutant(
        says="time bounds are judged by a wall clock that is behind",
        rules=Rules(judges_by_office=False),
        bounds=Bounds(script=BOUNDED[:1], asks=1, walls=(-3,)),
        breaks=_OVERRUN,
    ),
    Mutant(
        says="time bounds are judged by a wall clock that is set back",
        rules=Rules(judges_by_office=False),
        bounds=Bounds(script=BOUNDED[:1], asks=1, set_backs=1),
        breaks=_OVERRUN,
    ),
)

#: Where the protocol itself must hold: in every test run, and with ``make protocol``.
SMALL: Final[Mapping[str, Bounds]] = {
    "two hosts, an expert withdrawn": Bounds(script=WITHDRAWN[:2], asks=1, hosts=2),
    "questions overlap, the boot clock lags": Bounds(script=WITHDRAWN[:1], asks=2, lags=True),
    "time bound, a wall clock behind or set back": Bounds(
        script=BOUNDED[:1], asks=1, walls=(-3,), set_backs=1
    ),
    "a request is stopped": Bounds(script=WITHDRAWN[:1], asks=1, stops=True),
}
LARGE: Final[Mapping[str, Bounds]] = {
    "withdrawn and permitted again": Bounds(script=WITHDRAWN, asks=1),
    "the register is restored": Bounds(script=WITHDRAWN[:2], asks=1, restores=True),
    "two hosts, withdrawn and permitted again": Bounds(script=WITHDRAWN, asks=1, hosts=2),
    "two hosts, clocks lag": Bounds(script=WITHDRAWN[:2], asks=1, hosts=2, lags=True),
    "four epochs, questions overlap": Bounds(script=(*WITHDRAWN, ONLY_B), asks=2),
    "two time bounds, every clock wrong": Bounds(
        script=BOUNDED, asks=1, walls=(0, -3), lags=True, set_backs=1
    ),
    "a request is stopped while an expert is withdrawn": Bounds(script=WITHDRAWN[:2], asks=2, stops=True),
    "restored register and a host that crashes": Bounds(
        script=WITHDRAWN[:2], asks=1, crashes=1, restores=True
    ),
    "restored register that catches up": Bounds(script=WITHDRAWN, asks=1, restores=True),
}

# SPDX-License-Identifier: Apache-2.0
"""When the first member of a composition has to leave, if nothing but time goes on.

Knows facts as arrays and members as numbers, and decides about nobody.
"""

from __future__ import annotations

import numpy as np

from policy.compiled.spaces import FOREVER_US, Looks, Space, Spaces
from policy.compiled.words import Flags, Numbers


def first_end(spaces: Spaces, at_us: int, members: Flags, permits: Flags, forbids: Flags) -> int:
    """The first moment after ``at_us`` at which some member has to leave, ``FOREVER_US`` for none.

    Args:
        spaces: all facts.
        at_us: the moment at which all of these are members.
        members: by expert.
        permits: those that speak to the use, at whatever moment.
        forbids: the same of forbids.
    """
    bound_us = _first_forbid(spaces, at_us, members, forbids)
    return _first_lapse(spaces, at_us, members, permits, bound_us)


def _first_forbid(spaces: Spaces, at_us: int, members: Flags, forbids: Flags) -> int:
    """When the first forbid begins that hits a member."""
    space = spaces.forbids
    coming = np.flatnonzero(forbids & (space.from_us > at_us))
    if not len(coming):
        return FOREVER_US
    begins_us_S = np.full(space.slots, FOREVER_US, np.int64)
    np.minimum.at(begins_us_S, space.slot[coming], space.from_us[coming])
    own, all_ = _of(spaces.watches, members)
    return int(np.minimum(begins_us_S[own], begins_us_S[all_]).min(initial=FOREVER_US))


def _first_lapse(spaces: Spaces, at_us: int, members: Flags, permits: Flags, bound_us: int) -> int:
    """When the first member's need is no longer met, or the bound if that comes sooner."""
    space = spaces.permits
    live = np.flatnonzero(permits & space.live(at_us))
    ends_us_S = np.zeros(space.slots, np.int64)
    np.maximum.at(ends_us_S, space.slot[live], space.until_us[live])
    own, all_ = _of(spaces.needs, members)
    ends_us = np.maximum(ends_us_S[own], ends_us_S[all_])
    while len(ends_us):
        first = int(np.argmin(ends_us))
        end_us = int(ends_us[first])
        if end_us >= bound_us:
            break
        facts = np.concatenate([space.in_slot(own[first]), space.in_slot(all_[first])])
        later_us = _chained(space, facts[permits[facts]], end_us)
        if later_us == end_us:
            return end_us
        ends_us[first] = later_us
    return bound_us


def _chained(space: Space, facts: Numbers, end_us: int) -> int:
    """How far permits reach without a gap from a moment at which the last of them is over."""
    from_us, until_us = space.from_us[facts], space.until_us[facts]
    while True:
        # Half-open: one that begins at the moment leaves no gap.
        later_us = int(until_us[from_us <= end_us].max(initial=end_us))
        if later_us == end_us:
            return end_us
        end_us = later_us


def _of(looks: Looks, members: Flags) -> tuple[Numbers, Numbers]:
    """The slots that members look at."""
    here = members[looks.expert]
    return looks.own[here], looks.all[here]

# SPDX-License-Identifier: Apache-2.0
"""Conflicts of license terms between members: all or none, or by a published order.

Knows burdens and the order, and neither gates nor time.
"""

from __future__ import annotations

from policy.compiled.licensing import UseClass
from policy.compiled.reviewed import MILLION_PPM, Burden
from policy.compiled.words import Flags
from policy.deciding.questions import Asked
from policy.facts.snapshot import Snapshot


def settle(snapshot: Snapshot, asked: Asked, use: UseClass, members: Flags) -> list[int] | None:
    """Which members have to be left out so that the others can stand together.

    Returns:
        their numbers, none where nothing clashes; None where all or none may run and something does.
    """
    base = use.bases[asked.base_digest]
    burdened = [number for number in use.burdens if members[number]]
    if not base.join(use.burdens[number] for number in burdened).clashes:
        return []
    if asked.on_conflict == "strict":
        return None
    place_of = {expert_id: place for place, expert_id in reversed([*enumerate(asked.priority)])}

    def rank(number: int) -> tuple[int, str, str]:
        fact = snapshot.experts[number]
        return place_of.get(fact.expert_id, len(asked.priority)), fact.expert_id, fact.bundle_digest

    return _left_out(base, {number: use.burdens[number] for number in sorted(burdened, key=rank)})


def _left_out(base: Burden, burdens: dict[int, Burden]) -> list[int]:
    """Those that clash with the base and everyone before them who stays."""
    groups, royalties = set(base.groups), set(base.royalties)
    total_ppm = sum(ppm for _, _, ppm in royalties)
    left_out = []
    for number, burden in burdens.items():
        more = burden.royalties - royalties
        more_ppm = sum(ppm for _, _, ppm in more)
        if len(groups | burden.groups) > 1 or total_ppm + more_ppm > MILLION_PPM:
            left_out.append(number)
        else:
            groups |= burden.groups
            royalties |= more
            total_ppm += more_ppm
    return left_out

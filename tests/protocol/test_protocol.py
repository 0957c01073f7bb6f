# SPDX-License-Identifier: Apache-2.0
"""Law 9 over every state that the recomposition protocol can reach, and the mistakes that it would notice.

The bounds here are small; ``make protocol`` searches the larger ones and prints what it sees.
"""

from __future__ import annotations

import pytest
from protocol_model import Bounds, World
from protocol_mutants import MUTANTS, SMALL, WITHDRAWN, Mutant
from protocol_search import Search, settles


@pytest.mark.parametrize("bounds", SMALL.values(), ids=SMALL.keys())
def test_no_reachable_state_breaks_a_property(bounds: Bounds) -> None:
    """No loss, delay, order, copy, pause or wrong clock makes a host release what it must not."""
    found = Search(World(bounds=bounds)).run()
    assert not found.broken, "\n".join(found.trace)
    assert found.states > 1_000


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.says)
def test_every_wrong_protocol_is_caught(mutant: Mutant) -> None:
    """Each rule of the protocol is needed: without it the search shows how the law breaks."""
    found = Search(World(bounds=mutant.bounds, rules=mutant.rules)).run(only=mutant.breaks)
    assert found.broken == mutant.breaks
    assert len(found.trace) >= 5


@pytest.mark.parametrize(
    "bounds",
    [Bounds(script=WITHDRAWN[:2], asks=1), Bounds(script=WITHDRAWN[:1], asks=1, stops=True)],
    ids=["withdrawn", "stopped"],
)
def test_over_a_fair_network_everything_is_acknowledged_and_streams_go_on(bounds: Bounds) -> None:
    """From every reachable state, one question that comes through is enough."""
    world = World(bounds=bounds)
    search = Search(world)
    search.run()
    stuck = {
        settles(world, host, tick, office) for host, tick, office in search.reached() if office.news[-1].past
    }
    assert stuck == {""}

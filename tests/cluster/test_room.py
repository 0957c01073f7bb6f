# SPDX-License-Identifier: Apache-2.0
"""The engine room's thread: what it is asked is answered, whatever becomes of it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster.hosting.gate import ReleaseGate
from cluster.hosting.room import EngineRoom
from model_core.network.bank import ExpertBank
from tests.cluster.host_worlds import World, bundle_maker


def test_what_was_asked_of_a_room_that_ends_is_answered(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Commands that wait when the room is told to stop are run on the way out, so nobody waits for ever."""
    world = World(bundle_maker(request), tmp_path)
    bank = ExpertBank.open(world.base, world.store.get_bundle(world.base))
    room = EngineRoom(bank, ReleaseGate(), max_sequences=1, max_context=64)
    room.start()
    holds, held = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        holds.wait(10)

    room.call(hold)
    assert held.wait(10)
    waits = room.call(lambda: 7)
    ends = threading.Thread(target=room.stop)
    ends.start()
    while not room._stopping:
        threading.Event().wait(0.001)
    holds.set()
    ends.join(10)
    assert waits.result(timeout=10) == 7

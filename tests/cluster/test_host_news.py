# SPDX-License-Identifier: Apache-2.0
"""Which answers of the register a host follows, and what it remembers over a restart."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.hosting.errors import EpochRefused
from cluster.hosting.floor import EpochFloor
from cluster.hosting.gate import ReleaseGate
from cluster.hosting.link import RegisterLink
from cluster.hosting.news import is_newer, read_snapshot
from cluster.hosting.plan import EMPTY_ROSTER, Roster
from cluster.office.protocol import EpochNews
from policy.facts.snapshot import Snapshot


def news(epoch: int, digest: str = "", *, seen_digest: str = "") -> EpochNews:
    """An answer without its snapshot."""
    return EpochNews(
        epoch=epoch,
        snapshot_digest=digest or f"d{epoch}",
        lease_s=2.0,
        office_at_us=0,
        seen_digest=seen_digest,
    )


@given(known=st.integers(-1, 5), told=st.integers(0, 5), floor=st.integers(-1, 5))
def test_only_epochs_that_do_not_fall_are_followed(known: int, told: int, floor: int) -> None:
    """Below what is in force, or what was followed before a restart, nothing is taken."""
    seen = (known, f"d{known}")
    if told < max(known, floor):
        with pytest.raises(EpochRefused):
            is_newer(news(told), known, f"d{known}", seen, floor)
    else:
        assert is_newer(news(told), known, f"d{known}", seen, floor) == (told > known)


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (news(3, "other"), (3, "d3")),  # another snapshot of the epoch in force
        (news(4, seen_digest="other"), (3, "d3")),  # a register with another past
        (news(4, seen_digest="d2"), (2, "d2")),  # its past up to the epoch in force is not told
        (news(4), (-1, "")),
    ],
)
def test_a_register_with_another_past_is_refused(answer: EpochNews, seen: tuple[int, str]) -> None:
    """What cannot be what followed the epoch in force renews nothing."""
    with pytest.raises(EpochRefused):
        is_newer(answer, 3, "d3", seen)


def test_a_new_epoch_comes_with_its_snapshot() -> None:
    """News without what it is about is refused."""
    with pytest.raises(EpochRefused):
        read_snapshot(news(4))


def test_the_highest_epoch_stays_whatever_the_order(tmp_path: Path) -> None:
    """Hosts of one machine raise it at the same time; a lower one changes nothing."""
    floor = EpochFloor(tmp_path / "epoch.floor")
    assert floor.read() == -1
    threads = [threading.Thread(target=floor.raise_to, args=(epoch,)) for epoch in (7, 103, 9, 88, 0, 102)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert EpochFloor(tmp_path / "epoch.floor").read() == 103


class FalseRegister:
    """Announces an epoch far ahead and does not show it."""

    async def wait_epoch(
        self, server_id: str, seen_epoch: int, timeout_s: float = 0.5, changes: bool = False
    ) -> EpochNews:
        """As the office's."""
        return news(1000)

    async def acknowledge(
        self, server_id: str, epoch: int, snapshot_digest: str, compositions: dict[str, str]
    ) -> None:
        """As the office's."""
        pytest.fail("nothing was put in force")


@pytest.mark.parametrize("before", ["", "7", "\0\0"])
def test_a_false_answer_renews_nothing_and_is_not_remembered(tmp_path: Path, before: str) -> None:
    """Else one of them would keep all hosts of the machine from following the true register ever after."""
    path = tmp_path / "epoch.floor"
    path.write_text(before)

    async def unused(_: object) -> None:
        pytest.fail("nothing is put in force")

    gate = ReleaseGate()
    link = RegisterLink(
        FalseRegister(), "srv", "base", gate, apply=unused, load=unused, stop=unused, floor=EpochFloor(path)
    )
    asyncio.run(link._ask())
    assert link.counts.refused == 1
    assert not gate.is_open()
    assert path.read_text() == before


def test_compositions_are_made_by_one_thread_at_a_time_also_where_the_disk_fails(tmp_path: Path) -> None:
    """The next answer is not heard before the last one's composing has ended: both use one memory."""
    snapshot = Snapshot(epoch=1, published_at_us=1, vocabulary_version="1")
    composing, go_on = threading.Event(), threading.Event()

    def composed(_: Snapshot) -> Roster:
        composing.set()
        assert go_on.wait(30)
        return EMPTY_ROSTER

    async def unused(_: object) -> None:
        pytest.fail("nothing is put in force")

    async def story() -> None:
        answer = news(1, snapshot.digest).model_copy(update={"snapshot_json": snapshot.to_json()})
        floor = EpochFloor(tmp_path / "no folder" / "epoch.floor")
        link = RegisterLink(
            FalseRegister(), "srv", "b", ReleaseGate(), apply=unused, load=unused, stop=unused, floor=floor
        )
        link._composed = composed  # type: ignore[method-assign]
        hearing = asyncio.create_task(link._hear(answer, (-1, ""), 1))
        assert await asyncio.to_thread(composing.wait, 30)
        await asyncio.wait({hearing}, timeout=0.1)
        early = hearing.done()
        go_on.set()
        with pytest.raises(FileNotFoundError):
            await hearing
        assert not early

    asyncio.run(story())

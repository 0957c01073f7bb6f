# SPDX-License-Identifier: Apache-2.0
"""Writing in turn: urgent first, many under one commit, and each piece undone alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tenants.accounts.accounts import Accounts
from tenants.accounts.database import Database
from tenants.accounts.turns import Turns
from tenants.errors import NameTaken


@pytest.fixture
def turns(database: Database) -> Iterator[Turns]:
    """Turns on each engine."""
    made = Turns(database)
    yield made
    made.close()


def _found(slug: str) -> Callable[[Session], str]:
    def work(session: Session) -> str:
        Accounts(session, 1).create_tenant(slug, slug)
        return slug

    return work


def _slugs(database: Database) -> set[str]:
    with database.reading() as session:
        return {one.slug for one in Accounts(session, 1).list_tenants()}


class _Held:
    """Keeps every writer busy until ``let_go``, so that what comes meanwhile has to wait."""

    def __init__(self, turns: Turns, writers: int) -> None:
        self._gate = threading.Event()
        busy = [threading.Event() for _ in range(writers)]

        def hold(mark: threading.Event) -> Callable[[Session], None]:
            def work(_session: Session) -> None:
                mark.set()
                assert self._gate.wait(30)

            return work

        self._held = [turns.submit(hold(mark)) for mark in busy]
        for mark in busy:
            assert mark.wait(30)

    def let_go(self) -> None:
        """Lets the writers go on."""
        self._gate.set()
        for one in self._held:
            one.result(30)


def _hold(turns: Turns, database: Database) -> _Held:
    return _Held(turns, 1 if database.is_sqlite else 8)


def test_a_refusal_undoes_itself_alone(turns: Turns, database: Database) -> None:
    """Of pieces that wait together each refused one leaves nothing, and every other is kept."""

    def spoil(session: Session) -> None:
        Accounts(session, 1).create_tenant("half", "Half")
        raise ValueError("late")

    held = _hold(turns, database)
    first = turns.submit(_found("acme"))
    spoiled = turns.submit(spoil)
    taken = turns.submit(_found("acme"))
    broken = turns.submit(lambda session: session.execute(text("SELECT * FROM nowhere")))
    last = turns.submit(_found("beta"))
    held.let_go()
    assert last.result(30) == "beta"
    with pytest.raises(ValueError, match="late"):
        spoiled.result(30)
    with pytest.raises(DBAPIError):
        broken.result(30)
    # Several writers may take the two in any order; one of them finds the name taken.
    outcomes = [one.exception(30) for one in (first, taken)]
    assert sum(one is None for one in outcomes) == 1
    assert any(isinstance(one, NameTaken) or one is not None for one in outcomes)
    assert _slugs(database) == {"acme", "beta"}


def test_urgent_work_goes_first(turns: Turns, database: Database) -> None:
    """What is urgent is done before everything that already waits, and does not share its commit."""
    if not database.is_sqlite:
        pytest.skip("several writers at once: order is not theirs to keep")
    order: list[str] = []
    commits: list[int] = []

    def noted(_connection: Any) -> None:
        commits.append(len(order))

    def note(name: str) -> Callable[[Session], None]:
        return lambda _session: order.append(name)

    event.listen(database.engine, "commit", noted)
    held = _hold(turns, database)
    ordinary = [turns.submit(note(f"o{n}")) for n in range(5)]
    urgent = [turns.submit(note(f"u{n}"), urgent=True) for n in range(3)]
    held.let_go()
    for one in (*ordinary, *urgent):
        one.result(30)
    event.remove(database.engine, "commit", noted)
    assert order == ["u0", "u1", "u2", "o0", "o1", "o2", "o3", "o4"]
    assert commits == [0, 3, 8]


def test_urgent_work_cuts_a_group_short(turns: Turns, database: Database) -> None:
    """Urgent work that comes while a group is being done waits for one piece of it, not for all."""
    if not database.is_sqlite:
        pytest.skip("several writers at once: there are no groups")
    order: list[str] = []
    arrived: list[Any] = []

    def interrupt(_session: Session) -> None:
        order.append("o0")
        arrived.append(turns.submit(lambda _session: order.append("u"), urgent=True))

    held = _hold(turns, database)
    waiting = [turns.submit(interrupt), turns.submit(lambda _session: order.append("o1"))]
    held.let_go()
    for one in waiting:
        one.result(30)
    arrived[0].result(30)
    assert order == ["o0", "u", "o1"]


def test_urgent_work_starves_nobody(turns: Turns, database: Database) -> None:
    """However much is urgent, other work has a turn after every eight groups of it."""
    if not database.is_sqlite:
        pytest.skip("several writers at once")
    order: list[str] = []
    sent: list[Any] = []

    def send(_connection: Any) -> None:
        # With every commit one more, so that each is a group of its own.
        if len(sent) < 20:
            sent.append(turns.submit(lambda _session: order.append("u"), urgent=True))

    event.listen(database.engine, "commit", send)
    held = _hold(turns, database)
    other = turns.submit(lambda _session: order.append("o"))
    sent.append(turns.submit(lambda _session: order.append("u"), urgent=True))
    held.let_go()
    other.result(30)
    while len(sent) < 20 or not sent[-1].done():
        sent[-1].result(30)
    event.remove(database.engine, "commit", send)
    assert 8 <= order.index("o") <= 10
    assert order.count("u") == 20


def test_nobody_is_answered_before_the_commit(turns: Turns, database: Database) -> None:
    """Whoever has an answer finds what was written in the database, from any connection."""

    def look(slug: str) -> None:
        assert turns.submit(_found(slug)).result(30) == slug
        assert slug in _slugs(database)

    threads = [threading.Thread(target=look, args=(f"t-{n}",)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(_slugs(database)) == 12


def test_a_group_that_is_lost_is_done_piece_by_piece(turns: Turns, database: Database) -> None:
    """Where the database undoes a whole group, only the piece that is at fault fails."""
    if not database.is_sqlite:
        pytest.skip("there are no groups")

    def ruin(session: Session) -> None:
        # What SQLite does by itself when the disk is full.
        session.connection().connection.dbapi_connection.rollback()  # type: ignore[union-attr]
        raise OSError("disk full")

    held = _hold(turns, database)
    before, ruined, after = turns.submit(_found("acme")), turns.submit(ruin), turns.submit(_found("beta"))
    held.let_go()
    assert before.result(30) == "acme"
    assert after.result(30) == "beta"
    assert ruined.exception(30) is not None
    assert _slugs(database) == {"acme", "beta"}


def test_closing_does_what_waits(database: Database) -> None:
    """Work that was taken is done before the threads end; afterwards none is taken."""
    turns = Turns(database)
    told = [turns.submit(_found(f"t-{n}")) for n in range(20)]
    turns.close()
    assert [one.result(0) for one in told] == [f"t-{n}" for n in range(20)]
    with pytest.raises(RuntimeError):
        turns.submit(_found("late"))


def test_whoever_waits_no_more_keeps_nobody_from_an_answer(turns: Turns, database: Database) -> None:
    """A caller that gave up is told nothing; what it asked is done, and the writers go on for all others."""
    held = _hold(turns, database)
    told = [turns.submit(_found(f"t{number}")) for number in range(20)]
    assert all(one.cancel() for one in told[::2])
    held.let_go()
    assert [one.result(30) for one in told[1::2]] == [f"t{number}" for number in range(1, 20, 2)]
    assert turns.submit(_found("later")).result(30) == "later"
    turns.close()  # nobody is told when the cancelled ones are done, and another writer may still have one
    assert _slugs(database) >= {f"t{number}" for number in range(20)} | {"later"}

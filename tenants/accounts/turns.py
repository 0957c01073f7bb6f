# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is to write: urgent work first, and many small writes under one commit.

SQLite has one writer. Who wants to write waits here, in two queues, and not for a lock of the database's:

- Urgent work goes before all other; only after ``_URGENT_IN_A_ROW`` groups of it the others have one turn.
- Work that waits at the same time is done in one unit of work, each in a savepoint of its own: a refusal
  undoes that one alone, and nobody is answered before the commit that makes all of them durable.
- A group ends when urgent work arrives, after ``_MOST_TOGETHER`` pieces, or after ``_LONGEST_GROUP_S``. So
  urgent work waits for one piece of other work and one commit.
- Where a group as a whole cannot be kept, each of its pieces is done again in a unit of work of its own.

PostgreSQL lets several write at once, and a group would hold the locks of all its pieces until its end; there
several threads take one piece each, in the same order. Knows no desk and nothing of what is written.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sqlalchemy.orm import Session

from tenants.accounts.database import Database, SharedUnit, SharedUnitLost

log = logging.getLogger(__name__)

T = TypeVar("T")

Work = Callable[[Session], Any]

_MOST_TOGETHER: Final = 128
_LONGEST_GROUP_S: Final = 0.05
_URGENT_IN_A_ROW: Final = 8
_WRITERS_AT_ONCE: Final = 8


@dataclass(kw_only=True, slots=True)
class _Piece:
    """One piece of work and what became of it."""

    work: Work
    told: Future[Any] = field(default_factory=Future)
    answer: Any = None
    error: BaseException | None = None

    def tell(self) -> None:
        """Tells who waits, if anybody still does."""
        if not self.told.set_running_or_notify_cancel():
            return
        if self.error is not None:
            self.told.set_exception(self.error)
        else:
            self.told.set_result(self.answer)


class Turns:
    """Does everybody's writing.

    Args:
        database: open.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._together = database.is_sqlite
        self._urgent: deque[_Piece] = deque()
        self._ordinary: deque[_Piece] = deque()
        self._in_a_row = 0
        self._waiting = threading.Condition()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._run, name=f"writes-{number}", daemon=True)
            for number in range(1 if self._together else _WRITERS_AT_ONCE)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[Session], T], *, urgent: bool = False) -> Future[T]:
        """Has something done in a unit of work; the answer comes once it is committed.

        Args:
            work: what to do; it may be done a second time, after everything it wrote was undone.
            urgent: before everything that is not.

        Raises:
            RuntimeError: closed.
        """
        piece = _Piece(work=work)
        with self._waiting:
            if self._closing:
                raise RuntimeError("No more work is taken.")
            (self._urgent if urgent else self._ordinary).append(piece)
            self._waiting.notify()
        return piece.told

    def close(self) -> None:
        """Does what still waits and ends the threads."""
        with self._waiting:
            self._closing = True
            self._waiting.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (turn := self._next_turn()) is not None:
            piece, urgent = turn
            if self._together:
                self._do_together(piece, urgent=urgent)
            else:
                self._do_alone(piece)

    def _next_turn(self) -> tuple[_Piece, bool] | None:
        with self._waiting:
            while not self._urgent and not self._ordinary:
                if self._closing:
                    return None
                self._waiting.wait()
            urgent = bool(self._urgent) and not (self._ordinary and self._in_a_row >= _URGENT_IN_A_ROW)
            self._in_a_row = self._in_a_row + 1 if urgent else 0
            return (self._urgent if urgent else self._ordinary).popleft(), urgent

    def _next_of_group(self, done: int, began_s: float, *, urgent: bool) -> _Piece | None:
        if done >= _MOST_TOGETHER or time.monotonic() - began_s > _LONGEST_GROUP_S:
            return None
        with self._waiting:
            if urgent:
                return self._urgent.popleft() if self._urgent else None
            return self._ordinary.popleft() if self._ordinary and not self._urgent else None

    def _do_together(self, first: _Piece, *, urgent: bool) -> None:
        group: list[_Piece] = []
        began_s = time.monotonic()
        piece: _Piece | None = first
        try:
            with self._database.shared_unit() as unit:
                while piece is not None:
                    group.append(piece)
                    _do_part(unit, piece)
                    piece = self._next_of_group(len(group), began_s, urgent=urgent)
        except Exception:
            log.warning("a group of %d could not be kept; each is done alone", len(group), exc_info=True)
            for piece in group or [first]:
                self._do_alone(piece)
            return
        for piece in group:
            piece.tell()

    def _do_alone(self, piece: _Piece) -> None:
        piece.answer = piece.error = None
        try:
            with self._database.unit_of_work() as session:
                piece.answer = piece.work(session)
        except BaseException as error:
            piece.error = error
        piece.tell()


def _do_part(unit: SharedUnit, piece: _Piece) -> None:
    try:
        with unit.part() as session:
            piece.answer = piece.work(session)
    except SharedUnitLost:
        raise
    except BaseException as error:
        piece.error = error

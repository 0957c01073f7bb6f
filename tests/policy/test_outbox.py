# SPDX-License-Identifier: Apache-2.0
"""The outbox: every epoch is told in order, and none is lost where the teller dies after the commit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from town import Town

from policy.publishing.outbox import Outbox
from policy.records.epochs import Announcement
from policy.register import Register
from tenants.accounts.database import Database
from tenants.accounts.scope import PLATFORM


def waiting(database: Database) -> list[Announcement]:
    """What nobody was told yet."""
    with database.reading() as session:
        return Outbox(session, 1).waiting()


def test_epochs_wait_in_order_until_they_are_marked(town: Town) -> None:
    """Each publication leaves one row with its digest and reason; marking takes it out, once and for ever."""
    town.open_all(town.expert())
    word = town.act(lambda register: register.consents("acme"))[0]
    town.act(lambda register: register.withdraw_consent(word.id, town.ada))
    published = town.act(lambda register: register.publications())
    told = waiting(town.database)
    assert [(one.epoch, one.snapshot_digest, one.reason, one.at_us) for one in told] == [
        (one.epoch, one.snapshot_digest, one.reason, one.at_us) for one in published
    ]
    assert told[-1].reason == "consent.withdraw"
    with town.database.unit_of_work() as session:
        Outbox(session, town.now).mark([1, 2])
        Outbox(session, town.now + 1).mark([2])  # told twice: the first time counts
    assert [one.epoch for one in waiting(town.database)] == [3, 4]
    for statement in ("UPDATE outbox SET delivered_at_us = NULL", "DELETE FROM outbox"):
        with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
            session.execute(text(statement))


def test_what_is_not_published_is_not_told(town: Town) -> None:
    """A unit of work that fails after publishing leaves neither an epoch nor word of one."""
    town.open_all(town.expert())

    def fails(register: Register) -> None:
        register.remove_deployment("shop-ask", town.dirk)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        town.act(fails)
    assert [one.epoch for one in waiting(town.database)] == [1, 2, 3]


_CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from town import Town, deployment
from policy.publishing.outbox import Outbox
from tenants.accounts.database import Database
from tenants.accounts.scope import PLATFORM
database = Database(sys.argv[1], scope=PLATFORM)
town = Town(database)
town.widen(town.dora, town.carl, deployment(town.base))
with database.unit_of_work() as session:
    Outbox(session, town.now).mark([one.epoch for one in Outbox(session, town.now).waiting()])
town.widen(town.dora, town.carl, deployment(town.base, name="two"))
town.act(lambda register: register.remove_deployment("shop-ask", town.dirk))
print("committed", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_crash_between_commit_and_telling_loses_nothing(tmp_path: Path, sqlite_template: Path) -> None:
    """A process is killed right after its commits: the next one finds what was not told, in order."""
    shutil.copy(sqlite_template, tmp_path / "m.db")
    url = f"sqlite:///{tmp_path}/m.db"
    here = str(Path(__file__).parent)
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, url, here],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
    )
    assert (child.returncode, child.stdout.strip()) == (-signal.SIGKILL, "committed"), child.stderr
    database = Database(url, scope=PLATFORM)
    try:
        assert [one.epoch for one in waiting(database)] == [2, 3]
        with database.reading() as session:
            rows = session.execute(text("SELECT epoch FROM publications ORDER BY epoch"))
            assert [epoch for (epoch,) in rows] == [1, 2, 3]
    finally:
        database.close()

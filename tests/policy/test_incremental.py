# SPDX-License-Identifier: Apache-2.0
"""An epoch made out of the last one equals one read anew, over random histories and on both engines."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import delete, select, text
from sqlalchemy.exc import DBAPIError
from test_register_engines import ACTS, carry_out
from town import Town, consent, deployment

from policy.compiled.standing import place_of
from policy.epochs import archive
from policy.errors import SnapshotMismatch
from policy.facts.snapshot import FORMAT, Snapshot
from policy.publishing.publication import Publisher
from policy.records.items import ForbidUse, GrantGive
from policy.tables import PublicationRow, PublishedFactRow, SnapshotRow, UnpublishedRow


def check_epochs(town: Town, since: int) -> None:
    """What is drafted is what is read anew; what was stored is what was made, by both ways of reading."""
    with town.database.reading() as session:
        publisher = Publisher(session, town.now)
        assert publisher.draft(widens=False) == publisher.rebuilt(widens=False)
        assert publisher.draft(widens=True).digest == publisher.rebuilt(widens=True).digest
        stored = dict(archive.digests(session))
        for one in publisher.publications(after=since, limit=10_000):
            made, read = publisher.known(one.epoch), publisher.snapshot(one.epoch)
            assert read == made
            assert read.to_json() == made.to_json()
            assert Snapshot.from_json(made.to_json()).digest == one.snapshot_digest == stored[one.epoch]
            if one.epoch > 1:
                before = publisher.known(one.epoch - 1)
                way = archive.delta(session, (before.epoch, before.digest), made)
                assert way is not None
                assert way.applied(before, one.snapshot_digest) == made


@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(acts=ACTS)
def test_any_history_gives_the_epochs_that_are_read_anew(
    town: Town, acts: list[tuple[str, int, int]]
) -> None:
    """Whatever is given, withdrawn, listed, granted, suspended, resumed, forbidden or deployed."""
    if town.letters is None:
        town.letters = town.expert("acme", "one")
        town.open_all(town.letters, town.expert("acme", "two"), town.expert("beta", "three"))
    with town.register() as register:
        experts, since = register.experts(), register.current_epoch()
    for act, which, word in acts:
        carry_out(town, experts, act, which, word)
    town.expert("beta", f"late-{town.now}")  # written by a unit of work that publishes nothing
    check_epochs(town, since)


def test_a_publication_reads_only_what_was_written(town: Town) -> None:
    """Notes of triggers name what the next epoch reads; it takes them out, and closes one fact."""
    expert = town.expert()
    town.open_all(expert)
    given_ = town.act(lambda register: register.consents("acme"))[0]
    with town.database.unit_of_work() as session:
        assert archive.notes(session) == []
        session.execute(text("UPDATE consents SET state = 'withdrawn'"))
        assert archive.notes(session) == [("consents", given_.id)]
        session.rollback()
    epoch = town.act(lambda register: register.withdraw_consent(given_.id, town.ada)).epoch
    with town.database.reading() as session:
        row = PublishedFactRow
        written = session.execute(select(row.kind, row.identity).where(row.from_epoch == epoch)).all()
        assert set(written) == {("consents", given_.id), ("deployments", "shop-ask")}
        closed = session.execute(select(row.kind, row.identity).where(row.until_epoch == epoch)).all()
        assert set(closed) == set(written)
        assert session.scalars(select(UnpublishedRow)).all() == []


def test_moments_are_carried_from_epoch_to_epoch(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first publication of a process looks at every word for those that begin or end."""
    expert = town.expert()
    town.open_all(expert)
    given_ = town.act(lambda register: register.consents("acme"))[0]
    place_of.cache_clear()  # as in a process that has read nothing yet
    town.act(lambda register: register.forbid_use(ForbidUse(expert_id=expert.expert_id), town.ada))
    monkeypatch.setattr("policy.facts.snapshot.turns_of", None)
    epoch = town.act(lambda register: register.withdraw_consent(given_.id, town.ada)).epoch
    monkeypatch.undo()
    with town.database.reading() as session:
        known = Publisher(session, town.now).known(epoch)
        assert known.upcoming == Snapshot.from_json(known.to_json()).upcoming


def test_a_word_that_is_over_leaves_with_the_next_of_its_kind(town: Town) -> None:
    """Giving and taking back often leaves two words at most, and old epochs hold what they held."""
    expert = town.expert()
    town.open_all(expert)
    for _ in range(3):
        for kind, live in (("consents", "withdraw_consent"), ("grants", "revoke_grant")):
            with town.register() as register:
                word = next(one for one in getattr(register, kind)("acme") if one.state == "given")
                getattr(register, live)(word.id, town.ada)
            with town.register() as register:
                [stands] = getattr(register.snapshot(), kind)
                assert (stands.id, stands.state == "given") == (word.id, False)
        town.widen(
            town.ada,
            town.alan,
            consent(expert),
            GrantGive(expert_id=expert.expert_id, consumer_tenant="shop"),
        )
        assert town.members() == {expert.expert_id}
    with town.register() as register:
        newest, old = register.snapshot(), register.snapshot(4)
    assert [one.state for one in newest.consents] == [one.state for one in newest.grants] == ["given"]
    assert [one.state for one in old.consents] == ["withdrawn"]
    check_epochs(town, 0)


def test_epochs_of_releases_that_stored_whole_snapshots_are_read_and_followed(town: Town) -> None:
    """Their bytes and digests stay; the next epoch stores every fact anew, and the one after one fact."""
    expert = town.expert()
    town.open_all(expert)
    with town.register() as register:
        last = register.snapshot()
    old = last.model_copy(update={"epoch": last.epoch + 1, "format": 1})
    assert old.format != FORMAT
    with town.database.unit_of_work() as session:  # as those releases did
        columns: dict[str, Any] = {"reason": "x", "subject": "x", "principal_id": None, "change_id": None}
        session.add(
            PublicationRow(epoch=old.epoch, at_us=old.published_at_us, snapshot_digest=old.digest, **columns)
        )
        session.flush()
        session.add(SnapshotRow(epoch=old.epoch, document=zlib.compress(old.to_json(), 6)))
    with town.database.reading() as session:
        assert Publisher(session, town.now).snapshot(old.epoch) == old
        assert archive.delta(session, (old.epoch, old.digest), last) is None
    given_ = town.act(lambda register: register.consents("acme"))[0]
    epoch = town.act(lambda register: register.withdraw_consent(given_.id, town.ada)).epoch
    with town.database.reading() as session:
        publisher = Publisher(session, town.now)
        assert publisher.snapshot(epoch) == publisher.known(epoch)
        assert publisher.snapshot(epoch).deployments_by_name["shop-ask"].members == ()
        assert dict(archive.digests(session))[old.epoch] == old.digest
    town.widen(town.dora, town.carl, deployment(town.base, name="two"))
    check_epochs(town, epoch)


def test_published_facts_are_closed_once_and_never_change(town: Town) -> None:
    """The database itself refuses everything but the closing of a fact that still stands."""
    town.open_all(town.expert())
    word = town.act(lambda register: register.consents("acme"))[0]
    town.act(lambda register: register.withdraw_consent(word.id, town.ada))
    for statement in (
        "UPDATE published_facts SET document = '{}'",
        "UPDATE published_facts SET until_epoch = 9 WHERE until_epoch IS NOT NULL",
        "UPDATE published_facts SET until_epoch = NULL WHERE until_epoch IS NOT NULL",
        "UPDATE published_facts SET until_epoch = from_epoch",
        "DELETE FROM published_facts",
        "INSERT INTO published_facts SELECT kind, identity, 3, NULL, document FROM published_facts",
    ):
        with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
            session.execute(text(statement))


def test_facts_that_somebody_changed_behind_the_guards_are_refused(town: Town) -> None:
    """A snapshot with a fact more, less or otherwise is not the published one."""
    town.open_all(town.expert())
    with town.database.engine.begin() as connection:
        if town.database.is_sqlite:
            connection.execute(text("DROP TRIGGER guard_published_facts_delete"))
            connection.execute(delete(PublishedFactRow).where(PublishedFactRow.kind == "rules"))
            tampered = True
        else:
            tampered = False  # the office's role can not reach behind them
    with town.register() as register:
        if tampered:
            with pytest.raises(SnapshotMismatch):
                register.snapshot(3)
        else:
            assert register.snapshot(3).rules

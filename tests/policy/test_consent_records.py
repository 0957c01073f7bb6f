# SPDX-License-Identifier: Apache-2.0
"""Consent records: a life as a state machine, beside the words that decisions rest on; both engines."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from town import Town, consent, digest

from policy.consents.book import ConsentBook
from policy.consents.status import EVENTS, VALID, is_valid, may_follow, status_after
from policy.consents.vault import Vault
from policy.deciding.composition import compose
from policy.deciding.questions import Question
from policy.errors import ConsentEventRefused, InvalidChange, NotAllowed, NotFound, NotYours, Overlaps
from policy.preview.supposing import Supposition, suppose
from policy.records.assets import ExpertRecord
from policy.records.consents import ConsentRecord
from policy.records.items import ConsentRenew
from policy.records.paper import ConsentPaper, Notice
from policy.register import Register
from policy.tables import ConsentRow
from tenants.accounts.datasets import Datasets
from tenants.accounts.scope import PLATFORM, ScopedSession

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What no engine can change is tried on one.
ONE_ENGINE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
DAY = 86_400_000_000
NOTICE = Notice(
    language="en", version="1", text="We ask you ...", purposes={"research": "to find things out"}
)


@contextmanager
def book(town: Town) -> Iterator[ConsentBook]:
    """The consent book in a unit of work, one second after the last."""
    town.now += 1_000_000
    with town.database.unit_of_work() as session:
        yield ConsentBook(session, town.now)


def only(town: Town) -> ConsentRecord:
    """The newest consent of acme."""
    return town.act(lambda register: register.consents("acme"))[-1]


def opened(town: Town, **changes: object) -> ExpertRecord:
    """An expert that runs, with one consent of the given shape."""
    expert = town.expert()
    town.open_all(expert)
    if changes:
        first = only(town)
        town.act(lambda register: register.withdraw_consent(first.id, town.ada))
        town.widen(town.ada, town.alan, consent(expert, **changes))
    return expert


# -- the state machine ------------------------------------------------------------------------------------


def test_only_given_and_renewed_are_valid() -> None:
    """Every other status, and every word that this release does not know, is no consent."""
    assert {status for status in (*EVENTS, "unknown", "objected", "") if is_valid(status)} == VALID


@given(st.lists(st.sampled_from((*EVENTS, "objected")), max_size=6))
def test_histories_that_break_the_rules_are_unknown(events: list[str]) -> None:
    """A history is its last event if every step is allowed, and unknown (so no consent) if one is not."""
    status = status_after(events)
    legal = all(
        may_follow(before, after) for before, after in zip(["unknown", *events], events, strict=False)
    )
    assert status == ((events or ["unknown"])[-1] if legal else "unknown")


def test_valid_consent_is_reached_by_giving_alone() -> None:
    """Whatever happens, a valid record was given before, and nothing revives what was found invalid."""
    for events in product(EVENTS, repeat=4):
        if is_valid(status_after(events)):
            assert "given" in events
            assert "invalidated" not in events
    assert not any(may_follow("invalidated", event) for event in EVENTS)


# -- giving, renewing, ending -----------------------------------------------------------------------------


def test_what_was_consented_to_can_be_shown(town: Town) -> None:
    """A record holds the notice's words, the paper and the event with who, when and in which epoch."""
    expert = town.expert()
    with book(town) as opened_book:
        kept = opened_book.keep_notice("acme", NOTICE)
        assert opened_book.keep_notice("acme", NOTICE) == kept
    paper = ConsentPaper(notice_digest=kept.id, legal_basis="consent", jurisdiction="eu", channel="paper")
    publication = town.widen(town.ada, town.alan, consent(expert, paper=paper))
    given_word = only(town)
    with book(town) as read:
        file = read.file(given_word.id)
    assert (file.status, file.valid, file.paper) == ("given", True, paper)
    assert file.notice is not None
    assert file.notice.text == NOTICE.text
    [event] = file.events
    assert (event.event, event.principal_id, event.epoch, event.channel) == (
        "given",
        town.ada.id,
        publication.epoch,
        "paper",
    )
    assert (given_word.record_id, given_word.status) == (file.record_id, "given")


@ONE_ENGINE
def test_a_notice_nobody_keeps_is_not_cited(town: Town) -> None:
    """Consent that cites words which were never kept, or another tenant's, is refused whole."""
    expert = town.expert()
    with book(town) as opened_book:
        foreign = opened_book.keep_notice("beta", NOTICE).id
    for cited in (digest("nowhere"), foreign):
        with pytest.raises(NotFound):
            town.widen(town.ada, town.alan, consent(expert, paper=ConsentPaper(notice_digest=cited)))
    assert town.act(lambda register: register.consents("acme")) == []


def test_a_renewal_takes_over_at_once(town: Town) -> None:
    """Renewed from now on, the old word ends as the new begins: one record, two words, no gap."""
    expert = opened(town, valid_until_us=town.now + 30 * DAY)
    old, until = only(town), town.now + 90 * DAY
    item = ConsentRenew(consent_id=old.id, valid_until_us=until)
    publication = town.widen(town.ada, town.alan, item)
    new = only(town)
    assert (new.valid_from_us, new.valid_until_us, new.record_id) == (publication.at_us, until, old.record_id)
    assert town.members() == {expert.expert_id}
    with book(town) as read:
        file = read.file(old.id)
    assert [event.event for event in file.events] == ["given", "renewed"]
    assert [word.state for word in file.words] == ["withdrawn", "given"]
    assert (file.status, file.ends_us) == ("renewed", until)


@ONE_ENGINE
def test_a_renewal_goes_on_where_the_old_one_ends(town: Town) -> None:
    """Renewed for later, both words stand; withdrawing either takes both."""
    expert = opened(town, valid_until_us=town.now + 30 * DAY)
    old = only(town)
    end = old.valid_until_us or 0
    town.widen(
        town.ada,
        town.alan,
        ConsentRenew(consent_id=old.id, valid_from_us=end, valid_until_us=end + DAY),
    )
    assert {word.state for word in town.act(lambda r: r.consents("acme"))[-2:]} == {"given"}
    town.now = end + 1
    assert town.members() == {expert.expert_id}
    town.act(lambda register: register.withdraw_consent(old.id, town.ada))
    assert {word.state for word in town.act(lambda r: r.consents("acme"))} == {"withdrawn"}
    assert town.members() == set()


@ONE_ENGINE
def test_withdrawing_again_names_the_withdrawal_and_not_the_renewal(town: Town) -> None:
    """Whichever word of a renewed record is withdrawn again, the answer is the epoch that ended them all."""
    opened(town, valid_until_us=town.now + 30 * DAY)
    old = only(town)
    town.widen(town.ada, town.alan, ConsentRenew(consent_id=old.id, valid_until_us=town.now + 90 * DAY))
    new = only(town)
    ended = town.act(lambda register: register.withdraw_consent(new.id, town.ada))
    for word in (old, new):
        assert town.act(lambda register, one=word: register.withdraw_consent(one.id, town.ada)) == ended


@ONE_ENGINE
def test_renewals_that_are_none_are_refused(town: Town) -> None:
    """Not for shorter, not with an overlap, not what was withdrawn, has no end or belongs to another."""
    expert = opened(town)
    endless = only(town)
    with pytest.raises(InvalidChange):
        town.propose(town.ada, ConsentRenew(consent_id=endless.id))
    town.widen(town.ada, town.alan, consent(expert, purpose="education", valid_until_us=town.now + 30 * DAY))
    word = only(town)
    end = word.valid_until_us or 0
    refused = (
        ConsentRenew(consent_id=word.id, valid_until_us=end - DAY),
        ConsentRenew(consent_id=word.id, valid_from_us=end - DAY, valid_until_us=end + DAY),
        ConsentRenew(consent_id=word.id, valid_from_us=end + DAY, valid_until_us=end + DAY),
    )
    for item in refused:
        with pytest.raises(InvalidChange):
            town.propose(town.ada, item)
    with pytest.raises(NotYours):
        town.propose(town.bob, ConsentRenew(consent_id=word.id, valid_until_us=end + DAY))
    town.act(lambda register: register.withdraw_consent(word.id, town.ada))
    with pytest.raises(InvalidChange):
        town.propose(town.ada, ConsentRenew(consent_id=word.id, valid_until_us=end + DAY))


def test_a_renewal_does_not_run_into_another_word(town: Town) -> None:
    """A renewal that would say what another consent says at the same time is refused whole."""
    expert = opened(town, valid_until_us=town.now + 30 * DAY)
    old = only(town)
    end = old.valid_until_us or 0
    town.widen(town.ada, town.alan, consent(expert, valid_from_us=end, valid_until_us=end + DAY))
    with pytest.raises(Overlaps):
        town.widen(town.ada, town.alan, ConsentRenew(consent_id=old.id))
    assert [word.state for word in town.act(lambda r: r.consents("acme"))[-2:]] == ["given", "given"]


@ONE_ENGINE
def test_a_supposed_renewal_is_what_a_published_one_becomes(town: Town) -> None:
    """Simulated, a renewal keeps the expert serving after the old end, exactly as published it does."""
    opened(town, valid_until_us=town.now + DAY)
    word = only(town)
    item = ConsentRenew(consent_id=word.id, valid_until_us=town.now + 9 * DAY)
    before = town.act(lambda register: register.snapshot())
    supposed = suppose(before, Supposition(items=(item,)), tenant="acme", at_us=town.now)
    town.widen(town.ada, town.alan, item)
    published = town.act(lambda register: register.snapshot())
    question = Question(at_us=town.now + 3 * DAY, deployment="shop-ask")
    members = [{one.expert_id for one in compose(snapshot, question).members}
               for snapshot in (before, supposed, published)]  # fmt: skip
    assert members[0] == set()
    assert members[1] == members[2] != set()


@ONE_ENGINE
def test_a_renewal_is_approved_by_somebody_else(town: Town) -> None:
    """Compliance cannot renew in an owner's place; a colleague approves."""
    opened(town, valid_until_us=town.now + 30 * DAY)
    item = ConsentRenew(consent_id=only(town).id)
    with pytest.raises((NotAllowed, NotYours)):
        town.propose(town.carl, item)
    town.widen(town.ada, town.alan, item)
    assert only(town).valid_until_us is None


@ONE_ENGINE
def test_a_preview_of_a_renewal_leaves_nothing(town: Town) -> None:
    """Drafting and previewing write no event and end no word."""
    opened(town, valid_until_us=town.now + 30 * DAY)
    word = only(town)
    town.propose(town.ada, ConsentRenew(consent_id=word.id))
    with book(town) as read:
        assert [event.event for event in read.file(word.id).events] == ["given"]
    assert only(town).state == "given"


@ONE_ENGINE
def test_who_ended_it_stands_in_the_record(town: Town) -> None:
    """An owner withdraws, the platform's staff revokes, compliance finds invalid; all end the use at once."""
    expert = opened(town)
    for event in ("withdrawn", "revoked", "invalidated"):
        word = only(town)
        with town.register() as register:
            if event == "invalidated":
                publication = register.invalidate_consent(word.id, town.carl)
            else:
                publication = register.withdraw_consent(
                    word.id, town.ada if event == "withdrawn" else town.carl
                )
        with book(town) as read:
            file = read.file(word.id)
        assert (file.status, file.valid, file.events[-1].epoch) == (event, False, publication.epoch)
        assert file.events[-1].event == event
        assert town.members() == set()
        town.widen(town.ada, town.alan, consent(expert))
    word = only(town)
    with pytest.raises(NotAllowed), town.register() as register:
        register.invalidate_consent(word.id, town.ada)


def test_time_ends_a_consent_without_the_office(town: Town) -> None:
    """From its end on nothing runs and the record says expired; the note follows, once."""
    opened(town, valid_until_us=town.now + DAY)
    word = only(town)
    town.now = (word.valid_until_us or 0) - 1
    assert town.members() == set()
    with book(town) as read:
        assert read.file(word.id).status == "expired"
        assert [event.event for event in read.file(word.id).events] == ["given"]
        assert read.note_expired() == [word.id]
        assert read.note_expired() == []
        assert [event.event for event in read.file(word.id).events] == ["given", "expired"]
        assert read.file(word.id).events[-1].principal_id is None


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_withdrawal_waits_for_the_notes_of_lapsed_words(town: Town) -> None:
    """Two who write into records at once come one after the other, and neither is in the other's way."""
    opened(town, valid_until_us=town.now + DAY)
    word = only(town)
    town.now += 2 * DAY
    with book(town) as noting:
        assert noting.note_expired() == [word.id]
        with town.database.engine.connect() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '50ms'"))
            session = ScopedSession(connection, info={"scope": PLATFORM})
            with pytest.raises(OperationalError) as waiting:
                Register(session, town.now).withdraw_consent(word.id, town.ada)
    assert "advisory" in str(waiting.value.statement)
    town.act(lambda register: register.withdraw_consent(word.id, town.ada))
    assert only(town).state == "withdrawn"


@ONE_ENGINE
def test_a_lapsed_consent_can_be_renewed(town: Town) -> None:
    """After its end an owner renews from now on: the same record is valid again."""
    expert = opened(town, valid_until_us=town.now + DAY)
    word = only(town)
    town.now = (word.valid_until_us or 0) + DAY
    with book(town) as noted:
        noted.note_expired()
    town.widen(town.ada, town.alan, ConsentRenew(consent_id=word.id))
    assert town.members() == {expert.expert_id}
    with book(town) as read:
        assert [event.event for event in read.file(word.id).events] == ["given", "expired", "renewed"]
        assert read.note_expired() == []


@ONE_ENGINE
def test_renewed_words_do_not_crowd_out_those_that_lapsed(town: Town) -> None:
    """However few words are looked at, one whose record went on is none of them."""
    expert = opened(town, valid_until_us=town.now + DAY)
    renewed = only(town)
    item = ConsentRenew(consent_id=renewed.id, valid_from_us=renewed.valid_until_us)
    town.widen(town.ada, town.alan, item)
    town.widen(town.ada, town.alan, consent(expert, purpose="education", valid_until_us=town.now + 2 * DAY))
    lapsed = only(town)
    town.now += 3 * DAY
    with book(town) as read:
        assert read.note_expired(limit=1) == [lapsed.id]
        assert read.note_expired(limit=1) == []


@ONE_ENGINE
def test_reminders_name_what_ends_soon(town: Town) -> None:
    """Within N days, next first; not what is renewed, withdrawn, endless or further away."""
    expert = opened(town)
    for purpose, days in (("education", 20), ("academic-research", 5), ("medical", 60)):
        item = consent(expert, purpose=purpose, valid_until_us=town.now + days * DAY)
        town.widen(town.ada, town.alan, item)
    with book(town) as read:
        assert [one.purpose for one in read.expiring(30 * DAY)] == ["academic-research", "education"]
        assert [one.purpose for one in read.expiring(30 * DAY, "beta")] == []
        soon = read.expiring(30 * DAY)[0]
    assert 0 < soon.left_us <= 5 * DAY
    town.widen(town.ada, town.alan, ConsentRenew(consent_id=soon.id))
    with book(town) as read:
        assert [one.purpose for one in read.expiring(30 * DAY)] == ["education"]


def test_a_question_is_answered_once(town: Town) -> None:
    """Asked, a record permits nothing; it is refused or given, and the answer keeps its record."""
    expert = town.expert()
    with book(town) as asking:
        one, two = (asking.request("acme", ConsentPaper(), town.ada.id) for _ in range(2))
        assert [file.record_id for file in asking.requests("acme")] == [one, two]
        assert not asking.file(one).valid
        asking.refuse(two, town.ada.id)
        with pytest.raises(ConsentEventRefused):
            asking.refuse(two, town.ada.id)
    town.widen(town.ada, town.alan, consent(expert, record_id=one))
    word = only(town)
    with book(town) as read:
        assert [event.event for event in read.file(one).events] == ["requested", "given"]
        assert read.file(word.id).record_id == one
        assert read.requests("acme") == []
    for spent in (one, two):
        with pytest.raises(ConsentEventRefused):
            town.widen(town.ada, town.alan, consent(expert, purpose="education", record_id=spent))


@ONE_ENGINE
def test_a_question_to_another_is_not_answered(town: Town) -> None:
    """An owner's word never becomes the answer to what another owner was asked."""
    expert = town.expert()
    with book(town) as asking:
        foreign = asking.request("beta", ConsentPaper(), town.bob.id)
    with pytest.raises(NotFound):
        town.widen(town.ada, town.alan, consent(expert, record_id=foreign))


# -- datasets, older words, the database ------------------------------------------------------------------


def test_datasets_have_the_same_life(town: Town) -> None:
    """A consent for a dataset is renewed, reminded of and withdrawn like one for an expert."""
    expert = town.expert()
    town.open_all(expert)
    with town.database.unit_of_work() as session:
        [data] = Datasets(session, town.now).list("acme")
    town.widen(
        town.ada,
        town.alan,
        consent(expert, expert_id="*", dataset_id=data.id, valid_until_us=town.now + DAY),
    )
    word = only(town)
    assert word.dataset_id == data.id
    town.widen(town.ada, town.alan, ConsentRenew(consent_id=word.id, valid_until_us=town.now + 9 * DAY))
    renewed = only(town)
    assert renewed.dataset_id == data.id
    with book(town) as read:
        assert [one.dataset_id for one in read.expiring(30 * DAY)] == [data.id]
    town.act(lambda register: register.withdraw_consent(renewed.id, town.ada))
    with book(town) as read:
        assert [event.event for event in read.file(word.id).events] == ["given", "renewed", "withdrawn"]


def test_words_of_before_there_were_records_have_one(town: Town) -> None:
    """A word without a record reads as one, and gets it written with what happens to it next."""
    opened(town)
    word = only(town)
    with town.database.engine.begin() as connection:
        if town.database.is_sqlite:
            connection.execute(text("DROP TRIGGER guard_consent_record_events_delete"))
            connection.execute(text("DROP TRIGGER guard_consent_records_delete"))
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("DELETE FROM consent_record_events"))
        connection.execute(text("DELETE FROM consent_records"))
    assert (only(town).status, only(town).record_id) == ("given", word.id)
    with book(town) as read:
        assert (read.file(word.id).status, read.file(word.id).paper) == ("given", None)
    town.act(lambda register: register.withdraw_consent(word.id, town.ada))
    with book(town) as read:
        file = read.file(word.id)
    assert [(event.event, event.principal_id) for event in file.events] == [
        ("given", town.ada.id),
        ("withdrawn", town.ada.id),
    ]


def test_the_database_keeps_records_as_they_are(town: Town) -> None:
    """Neither records nor events nor notices are edited, deleted or given a gap, even with raw SQL."""
    opened(town)
    with book(town) as opened_book:
        opened_book.keep_notice("acme", NOTICE)
    statements = (
        "UPDATE consent_record_events SET event = 'given'",
        "DELETE FROM consent_record_events",
        "UPDATE consent_records SET document = 'null'",
        "DELETE FROM notices",
        (
            "INSERT INTO consent_record_events (record_id, n, tenant, event, at_us, channel) "
            "SELECT record_id, 9, tenant, 'withdrawn', 1, 'api' FROM consent_records"
        ),
    )
    for statement in statements:
        with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
            session.execute(text(statement))


# -- the vault --------------------------------------------------------------------------------------------


def test_the_vault_forgets_and_the_hash_stays(town: Town) -> None:
    """Kept twice, a name has two references; forgotten, nothing is left but a hash with no way back."""
    with town.database.unit_of_work() as session:
        vault = Vault(session, town.now)
        one, two = vault.keep("acme", "subject", "Ann Example"), vault.keep("acme", "subject", "Ann Example")
        assert one != two
        assert sorted(vault.find("acme", "subject", "Ann Example")) == sorted([one, two])
        assert vault.find("beta", "subject", "Ann Example") == []
        assert vault.find("acme", "evidence", "Ann Example") == []
        assert vault.erase(one)
        assert not vault.erase(one)
        assert (vault.read(one), vault.holds(one), vault.read(two)) == (None, False, "Ann Example")
    with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
        session.execute(text("UPDATE personal_vault SET text = 'Bob'"))


# -- records and decisions say the same -------------------------------------------------------------------

_ACTS = st.lists(
    st.sampled_from(["give", "renew", "withdraw", "revoke", "invalidate", "wait", "note"]),
    min_size=1,
    max_size=8,
)


@settings(max_examples=8)
@given(acts=_ACTS)
def test_a_record_is_valid_exactly_while_its_word_permits(acts: list[str], fresh_town: Town) -> None:
    """After any history: a record is valid if and only if one of its words is live at that moment."""
    town = fresh_town
    expert = town.expert(name=f"e{len(town.act(lambda r: r.experts('acme')))}")
    for act in acts:
        _do(town, expert, act)
        with town.database.unit_of_work() as session:
            reader = ConsentBook(session, town.now)
            words = list(session.scalars(select(ConsentRow).where(ConsentRow.expert_id == expert.expert_id)))
            for record, status in set(reader.standings(words).values()) if words else ():
                file = reader.file(record)
                live = [
                    word
                    for word in file.words
                    if word.state == "given"
                    and word.valid_from_us <= town.now
                    and (word.valid_until_us is None or town.now < word.valid_until_us)
                ]
                assert len(live) <= 1
                assert file.valid == bool(live), (acts, act, file)
                assert len(file.words) == 1 or file.words[-1].valid_until_us is None or status == file.status


def _do(town: Town, expert: ExpertRecord, act: str) -> None:
    words = [word for word in town.act(lambda r: r.consents("acme")) if word.expert_id == expert.expert_id]
    if act == "wait":
        town.now += 2 * DAY
    elif act == "note":
        with book(town) as noting:
            noting.note_expired()
    elif act == "give" and (not words or words[-1].status not in VALID):
        town.widen(town.ada, town.alan, consent(expert, valid_until_us=town.now + 3 * DAY))
    elif words and act == "renew" and words[-1].state == "given":
        until = max(words[-1].valid_until_us or 0, town.now) + 3 * DAY
        town.widen(town.ada, town.alan, ConsentRenew(consent_id=words[-1].id, valid_until_us=until))
    elif words and act == "withdraw":
        town.act(lambda register: register.withdraw_consent(words[-1].id, town.ada))
    elif words and act == "revoke":
        town.act(lambda register: register.withdraw_consent(words[-1].id, town.olga))
    elif words and act == "invalidate":
        town.act(lambda register: register.invalidate_consent(words[-1].id, town.carl))


@pytest.fixture(scope="module")
def fresh_town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """One town on SQLite for all examples of a property; each uses an expert of its own."""
    import migrations
    from tenants.accounts.database import Database
    from tenants.accounts.scope import PLATFORM

    database = Database(f"sqlite:///{tmp_path_factory.mktemp('consents')}/town.db", scope=PLATFORM)
    migrations.upgrade(database.engine)
    yield Town(database)
    database.close()

# SPDX-License-Identifier: Apache-2.0
"""Two times: what was known when stays as it was, and what is recorded late corrects nothing silently."""

from __future__ import annotations

import json

import pytest
from test_register_engines import copy_rows, towns
from town import START, Town, consent, deployment

from model_core.packing.canonical import canonical_bytes
from policy.deciding.composition import compose
from policy.deciding.questions import Question
from policy.errors import NotFound, UnknownDeployment
from policy.publishing.history import Correction, History
from policy.records.items import ForbidUse
from policy.register import Register

__all__ = ["towns"]  # a fixture of the other module

HOUR = 3_600_000_000


def history(town: Town, at_us: int, *, recorded_us: int, name: str | None = None) -> tuple[str, set[str]]:
    """State of the one consent, and members of a deployment, as known then."""
    with town.database.reading() as session:
        found = History(session, town.now).as_of(valid_us=at_us, recorded_us=recorded_us, deployment=name)
    members = () if found.composition is None else found.composition.members
    return str([one.id for one in found.consents]), {member.expert_id for member in members}


def corrections(town: Town, epoch: int) -> list[Correction]:
    """What the late facts of an epoch would have turned."""
    with town.database.reading() as session:
        return History(session, town.now).corrections(epoch)


def test_what_was_known_then_stays_known(town: Town) -> None:
    """Given until an hour from now, then withdrawn: each pair of moments has the answer it had then."""
    expert = town.expert()
    town.open_all(expert)
    first = town.act(lambda register: register.consents("acme"))[0]
    given_us = town.now
    town.act(lambda register: register.withdraw_consent(first.id, town.ada))
    gone_us = town.now
    end_us = town.now + HOUR
    town.widen(town.ada, town.alan, consent(expert, valid_until_us=end_us))
    again_us = town.now
    second = town.act(lambda register: register.consents("acme"))[1]
    none, one = (str([]), set[str]()), {expert.expert_id}
    for valid_us, recorded_us, expected in (
        (given_us, given_us, (str([first.id]), one)),
        (end_us + HOUR, given_us, (str([first.id]), one)),  # nobody had taken it back then
        (given_us, gone_us, none),
        (again_us, gone_us, none),
        (again_us, again_us, (str([second.id]), one)),
        (end_us - 1, again_us, (str([second.id]), one)),
        (end_us, again_us, none),
        (gone_us, again_us, none),  # it holds from its publication on
        (again_us, town.now + HOUR, (str([second.id]), one)),
    ):
        assert history(town, valid_us, recorded_us=recorded_us, name="shop-ask") == expected
    with pytest.raises(NotFound):
        history(town, START, recorded_us=START - 1)
    with pytest.raises(UnknownDeployment):
        history(town, START, recorded_us=town.now, name="nowhere")


def test_every_form_of_a_fact_has_its_recorded_time(town: Town) -> None:
    """Half-open and without a gap: as given from its epoch until the one that took it back, and so on."""
    town.open_all(town.expert())
    word = town.act(lambda register: register.consents("acme"))[0]
    withdrawn = town.act(lambda register: register.withdraw_consent(word.id, town.ada))
    with town.database.reading() as session:
        one, two = History(session, town.now).recorded("consents", word.id)
        assert History(session, town.now).recorded("consents", "con_none") == []
    published = {one.epoch: one.at_us for one in town.act(lambda register: register.publications())}
    assert (one.from_epoch, one.until_epoch) == (1, withdrawn.epoch)
    assert (one.recorded_from_us, one.recorded_until_us) == (published[1], withdrawn.at_us)
    assert (two.from_epoch, two.recorded_from_us) == (withdrawn.epoch, withdrawn.at_us)
    assert (two.until_epoch, two.recorded_until_us) == (None, None)
    assert [json.loads(fact.document)["state"] for fact in (one, two)] == ["given", "withdrawn"]


def test_a_prohibition_recorded_late_reports_what_it_would_have_turned(town: Town) -> None:
    """Old decisions stay and replay; the report names those that stood while the prohibition held."""
    one, two = town.expert(name="one"), town.expert(name="two")
    town.open_all(one, two)
    town.widen(town.dora, town.carl, deployment(town.base, name="other", candidates=(two.expert_id,)))
    since_us = town.now + 500_000
    town.widen(town.dora, town.carl, deployment(town.base, name="later"))
    before = town.act(lambda register: register.decisions())
    late = ForbidUse(expert_id=one.expert_id, valid_from_us=since_us)
    epoch = town.act(lambda register: register.forbid_use(late, town.ada)).epoch
    found = corrections(town, epoch)
    assert {(one_.deployment, one_.gained, one_.lost) for one_ in found} == {
        ("shop-ask", (), (one.expert_id,)),
        ("later", (), (one.expert_id,)),
    }
    logged = {row.id: row for row in before}
    for correction in found:
        row = logged[correction.decision_id]
        assert correction.at_us == max(since_us, row.question["at_us"])
        assert row.deployment == correction.deployment
        assert town.act(lambda register, id_=row.id: register.replay(id_)).equal
        assert town.act(lambda register, id_=row.id: register.decision(id_)) == row
    # Recorded for a time from which on everything was logged: nothing that ended before is named.
    on_time = ForbidUse(expert_id=two.expert_id)
    assert corrections(town, town.act(lambda r: r.forbid_use(on_time, town.ada)).epoch) == []
    with pytest.raises(NotFound):
        corrections(town, 99)


def test_a_consent_recorded_late_reports_whom_it_would_have_let_in(town: Town) -> None:
    """A use that was denied for want of a consent would have been permitted had it been recorded in time."""
    expert = town.expert()
    town.open_all(expert)
    first = town.act(lambda register: register.consents("acme"))[0]
    town.act(lambda register: register.withdraw_consent(first.id, town.ada))
    gone_us = town.now
    town.now += HOUR
    late = consent(expert, valid_from_us=gone_us + 1)
    epoch = town.widen(town.ada, town.alan, late).epoch
    (found,) = corrections(town, epoch)
    assert (found.deployment, found.gained, found.lost) == ("shop-ask", (expert.expert_id,), ())
    assert found.at_us == gone_us + 1


def test_every_epoch_is_the_same_on_both_engines(towns: tuple[Town, Town]) -> None:
    """Copied row by row, each epoch is read back to equal bytes, and answers at any two moments are equal."""
    sqlite, postgres = towns
    expert = sqlite.expert()
    sqlite.open_all(expert, sqlite.expert("beta", "two"))
    word = sqlite.act(lambda register: register.consents("acme"))[0]
    sqlite.act(lambda register: register.withdraw_consent(word.id, sqlite.ada))
    sqlite.widen(sqlite.ada, sqlite.alan, consent(expert, valid_until_us=sqlite.now + HOUR))
    copy_rows(sqlite.database, postgres.database)
    answers: list[list[bytes]] = []
    for town in towns:
        with town.database.reading() as session:
            register, past = Register(session, sqlite.now), History(session, sqlite.now)
            said = []
            for publication in register.publications():
                snapshot = register.snapshot(publication.epoch)
                said.append(snapshot.to_json())
                for valid_us in (START, sqlite.now, sqlite.now + HOUR):
                    known = past.as_of(valid_us=valid_us, recorded_us=publication.at_us)
                    said.append(canonical_bytes(known.model_dump(mode="json")))
                    if "shop-ask" in snapshot.deployments_by_name:
                        asked = Question(at_us=valid_us, deployment="shop-ask")
                        said.append(compose(snapshot, asked).to_json())
            answers.append(said)
    assert answers[0] == answers[1]

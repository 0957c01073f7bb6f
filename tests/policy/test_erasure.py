# SPDX-License-Identifier: Apache-2.0
"""Erasure, holds and notifications on both engines: two people, every copy listed, nothing past a hold."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError
from town import ERASURE_TABLES, Town, consent, usage

from model_core.packing.keys import generate_key
from policy.audit.chain import Audit
from policy.consents.book import ConsentBook
from policy.consents.receipts import check_receipt
from policy.consents.vault import Vault
from policy.deciding.composition import compose
from policy.deciding.questions import Question
from policy.erasures.book import Erasures
from policy.erasures.effective import effective
from policy.erasures.holds import Holds
from policy.erasures.notifications import Notifications
from policy.erasures.records import Erasure
from policy.errors import (
    ErasureClosed,
    InvalidChange,
    LegalHold,
    NotAllowed,
    NotFound,
    NotYours,
    SelfApproval,
)
from policy.records.paper import ConsentPaper, Notice
from policy.tables import APPEND_ONLY, LATCHED
from tenants.accounts.datasets import Datasets
from tenants.accounts.schema import Base
from tenants.accounts.scope import PLATFORM, ScopedSession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policy.records.assets import ExpertRecord

#: What no engine can change is tried on one.
ONE_ENGINE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
KEY = generate_key()


@contextmanager
def erasing(town: Town) -> Iterator[Erasures]:
    """The room of erasure in a unit of work, one second after the last."""
    town.now += 1_000_000
    with town.database.unit_of_work() as session:
        yield Erasures(session, town.now)


@contextmanager
def holding(town: Town) -> Iterator[Holds]:
    """The room of holds in a unit of work, one second after the last."""
    town.now += 1_000_000
    with town.database.unit_of_work() as session:
        yield Holds(session, town.now)


def asked(town: Town, expert: ExpertRecord) -> Erasure:
    """Ada asks for an expert to be erased."""
    with erasing(town) as room:
        return room.request("expert", expert.expert_id, "consent withdrawn", town.ada)


def finished(town: Town, erasure_id: str) -> Erasure:
    """Writes down that everything planned is gone, and completes."""
    with erasing(town) as room:
        for copy in room.get(erasure_id).copies:
            if copy.kind == "recipient":
                room.tell(erasure_id, copy)
            elif not copy.done:
                room.note(erasure_id, copy, "erased")
        return room.complete(erasure_id, KEY)


def test_the_least_that_anybody_allows() -> None:
    """Over all words of owner, order, hold and erasure: nobody widens what another denies."""
    for owner, stopped, held, erased in product((True, False), repeat=4):
        found = effective(owner_permits=owner, ordered_to_stop=stopped, held=held, erased=erased)
        assert (found.serving == "permitted") == (owner and not stopped and not erased)
        assert found.storage == ("erased" if erased else "kept" if held else "erasable")
        lifted = effective(owner_permits=owner, ordered_to_stop=stopped, held=False, erased=erased)
        assert lifted.serving == found.serving
        assert len(found.because) == (not owner) + stopped + held + erased


def test_golden_withdrawn_and_held(town: Town) -> None:
    """Owner withdrew, an order says keep: use is denied, storage is kept, erasing fails with LEGAL_HOLD."""
    expert = town.expert()
    town.open_all(expert)
    with holding(town) as room:
        hold = room.set("expert", expert.expert_id, "case 1", town.carl)
    town.act(lambda register: register.withdraw_consent(register.consents("acme")[0].id, town.ada))
    assert town.members() == set()
    wanted = asked(town, expert)
    with pytest.raises(LegalHold) as refused, erasing(town) as room:
        room.approve(wanted.id, town.carl)
    assert refused.value.code == "legal_hold"
    assert refused.value.facts["reason"] == "LEGAL_HOLD"
    assert town.act(lambda register: register.expert(expert.expert_id)).state == "listed"
    with holding(town) as room:
        assert not room.lift(hold.id, "closed", town.cleo).stands
    with erasing(town) as room:
        assert room.approve(wanted.id, town.carl).state == "approved"


@ONE_ENGINE
@pytest.mark.parametrize("kind", ["tenant", "dataset"])
def test_holds_reach_what_belongs_to_them(town: Town, kind: str) -> None:
    """A hold on a tenant, or on a dataset of its lineage, keeps the expert too; another's does not."""
    expert = town.expert()
    with holding(town) as room:
        room.set("tenant", "beta", "another case", town.carl)
        room.on("acme", ("expert", expert.expert_id))
        subject = "acme" if kind == "tenant" else expert.dataset_ids[0]
        room.set("tenant" if kind == "tenant" else "dataset", subject, "case", town.carl)
    wanted = asked(town, expert)
    with pytest.raises(LegalHold), erasing(town) as room:
        room.approve(wanted.id, town.alan)


@ONE_ENGINE
def test_holds_are_of_compliance_alone(town: Town) -> None:
    """No owner, developer or operator sets or lifts a hold, and nothing unknown is held."""
    expert = town.expert()
    for principal in (town.ada, town.dora, town.olga):
        with pytest.raises(NotAllowed), holding(town) as room:
            room.set("expert", expert.expert_id, "x", principal)
    with holding(town) as room:
        hold = room.set("expert", expert.expert_id, "x", town.carl)
    with pytest.raises(NotAllowed), holding(town) as room:
        room.lift(hold.id, "x", town.ada)
    with pytest.raises(NotFound), holding(town) as room:
        room.set("expert", "exp_nowhere", "x", town.carl)


def test_erasing_takes_two_people(town: Town) -> None:
    """Whoever asked cannot approve; another owner or compliance can; strangers find nothing."""
    expert = town.expert()
    with pytest.raises(NotFound), erasing(town) as room:
        room.request("expert", expert.expert_id, "x", town.bob)
    wanted = asked(town, expert)
    mighty = town.ada.model_copy(update={"roles": frozenset(town.carl.roles | town.olga.roles)})
    for principal in (town.ada, mighty):
        with pytest.raises(SelfApproval), erasing(town) as room:
            room.approve(wanted.id, principal)
    for principal in (town.bob, town.dora):
        with pytest.raises((NotFound, NotYours)), erasing(town) as room:
            room.approve(wanted.id, principal)
    with pytest.raises(InvalidChange):
        asked(town, expert)
    with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
        session.execute(text("UPDATE erasures SET state = 'approved', decided_by = requested_by, epoch = 1"))
    with erasing(town) as room:
        assert room.approve(wanted.id, town.alan).state == "approved"
    with pytest.raises(ErasureClosed), erasing(town) as room:
        room.approve(wanted.id, town.carl)


def test_an_erased_expert_never_comes_back(town: Town) -> None:
    """From the approval on it serves nowhere, with all consents standing, and nothing revives it."""
    expert = town.expert()
    town.open_all(expert)
    wanted = asked(town, expert)
    with erasing(town) as room:
        approved = room.approve(wanted.id, town.alan)
    assert town.members() == set()
    snapshot = town.act(lambda register: register.snapshot(approved.epoch))
    answer = compose(snapshot, Question(at_us=town.now, deployment="shop-ask"))
    assert [one.verdict for one in answer.decisions] == ["deny"]
    with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
        session.execute(text("UPDATE experts SET state = 'listed'"))


@ONE_ENGINE
def test_a_rejected_request_changes_nothing(town: Town) -> None:
    """Rejected, everything is as before, and it may be asked for again."""
    expert = town.expert()
    town.open_all(expert)
    wanted = asked(town, expert)
    with erasing(town) as room:
        assert room.reject(wanted.id, town.carl).state == "rejected"
    assert town.members() == {expert.expert_id}
    assert asked(town, expert).state == "requested"


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_rejection_waits_for_an_approval_before_it_looks(town: Town) -> None:
    """While somebody approves, nobody reads the request as undecided and closes it over the approval."""
    wanted = asked(town, town.expert())
    with erasing(town) as room:
        room.approve(wanted.id, town.carl)
        with town.database.engine.connect() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '50ms'"))
            session = ScopedSession(connection, info={"scope": PLATFORM})
            with pytest.raises(OperationalError) as waiting:
                Erasures(session, town.now).reject(wanted.id, town.alan)
    assert "advisory" in str(waiting.value.statement)
    with pytest.raises(ErasureClosed), erasing(town) as room:
        room.reject(wanted.id, town.alan)


def test_the_record_names_recipients_and_what_stays(town: Town) -> None:
    """Whoever used it or has access is told once; experts of the same data and old answers are named."""
    expert = town.expert()
    town.open_all(expert)
    sister = _sister(town, expert)
    town.budget("shop", 1_000_000)
    held = town.reserve()
    with town.metering() as metering:
        metering.record("host", 1, [usage(held, {expert.bundle_digest: 50_000_000}, 50, final=True)])
    with town.register() as register:
        snapshot = register.snapshot()
        question = Question(at_us=town.now, deployment="shop-ask", action="export_weights")
        refused = compose(snapshot, question)
        register.record_decisions(refused, question)
    wanted = asked(town, expert)
    with erasing(town) as room:
        room.approve(wanted.id, town.alan)
        [recipient] = [copy for copy in room.get(wanted.id).copies if copy.kind == "recipient"]
        assert (recipient.place, recipient.facts["because"]) == ("shop", ["granted", "used"])
    with pytest.raises(ErasureClosed), erasing(town) as room:
        room.complete(wanted.id, KEY)
    done = finished(town, wanted.id)
    assert done.state == "completed"
    with town.database.unit_of_work() as session:
        letters = Notifications(session, town.now)
        [told] = letters.list("shop")
        assert (told.kind, told.object, told.acknowledged_by) == ("erasure", wanted.id, None)
        with pytest.raises(NotYours):
            letters.acknowledge(told.id, town.bob)
        assert letters.acknowledge(told.id, town.dora).acknowledged_by == town.dora.id
        assert letters.acknowledge(told.id, town.dirk).acknowledged_by == town.dora.id
        signed = Erasures(session, town.now).record(wanted.id)
    assert check_receipt(signed.model_dump_json().encode(), {KEY.public_key}).kind == "erasure-record"
    document = signed.document
    assert document["recipients"][0]["told_at_us"] <= town.now
    assert sister.expert_id in {one["where"] for one in document["residual_influence"]}
    assert {"tuned routers", "answers"} <= {one["where"] for one in document["residual_influence"]}
    kinds = {copy["kind"] for copy in document["copies"]}
    assert {"artifact", "packed_files", "backup", "tombstone"} <= kinds
    with pytest.raises(ErasureClosed), erasing(town) as room:
        room.complete(wanted.id, KEY)


def _sister(town: Town, expert: ExpertRecord) -> ExpertRecord:
    """Another expert of the same owner that was trained on the same dataset."""
    from town import digest, expert_manifest

    with town.register() as register:
        manifest = expert_manifest("acme", "sister", town.base)
        return register.admit_expert(manifest, digest("sister"), list(expert.dataset_ids), "acme")


@ONE_ENGINE
def test_datasets_and_their_experts(town: Town) -> None:
    """Erasing a dataset lists its documents and names the experts that learned from it."""
    expert = town.expert()
    with town.database.unit_of_work() as session:
        [data] = Datasets(session, town.now).list("acme")
    with erasing(town) as room:
        wanted = room.request("dataset", data.id, "x", town.ada)
        room.approve(wanted.id, town.carl)
        copies = room.get(wanted.id).copies
    assert ("documents", data.id) in {(copy.kind, copy.place) for copy in copies}
    assert expert.expert_id in {copy.place for copy in copies if copy.kind == "residual"}


def test_personal_data_goes_and_the_chain_still_holds(town: Town) -> None:
    """Erased, the vault is empty, the record reads on without names, and audit and seals still verify."""
    expert = town.expert()
    with town.database.unit_of_work() as session:
        vault = Vault(session, town.now)
        refs = [vault.keep("acme", kind, "Ann Example") for kind in ("subject", "evidence")]
    paper = ConsentPaper(subject_ref=refs[0], evidence_ref=refs[1], subject_kind="data_subjects")
    town.widen(town.ada, town.alan, consent(expert, paper=paper))
    word = town.act(lambda register: register.consents("acme"))[-1]
    with erasing(town) as room:
        wanted = room.request("personal_data", word.record_id, "asked to", town.ada)
        room.approve(wanted.id, town.alan)
    with town.database.unit_of_work() as session:
        room, vault = Erasures(session, town.now), Vault(session, town.now)
        for copy in room.get(wanted.id).copies:
            if copy.kind == "vault":
                assert vault.erase(copy.place)
                room.note(wanted.id, copy, "erased")
        assert [vault.read(ref) for ref in refs] == [None, None]
        file = ConsentBook(session, town.now).file(word.id)
        assert file.paper is not None
        assert (file.valid, file.paper.subject_ref) == (True, refs[0])
    done = finished(town, wanted.id)
    with town.database.reading() as session:
        assert Audit(session, town.now).verify().ok
    assert "Ann" not in done.model_dump_json()


def test_these_tables_are_guarded_as_well(town: Town) -> None:
    """Raw UPDATE and DELETE fail on holds, erasures, their events, notices and notifications."""
    expert = town.expert()
    with town.database.unit_of_work() as session:
        ConsentBook(session, town.now).keep_notice("acme", Notice(language="en", version="1", text="x"))
        Notifications(session, town.now).tell("acme", "test", "x", {})
    wanted = asked(town, expert)
    with erasing(town) as room:
        room.approve(wanted.id, town.carl)
    with holding(town) as room:
        room.set("expert", expert.expert_id, "x", town.carl)
    for table in ERASURE_TABLES:
        assert table in {*APPEND_ONLY, *LATCHED}
        movable = LATCHED.get(table, ())
        fixed = [one.name for one in Base.metadata.tables[table].columns if one.name not in movable][-1]
        for statement in (f"UPDATE {table} SET {fixed} = NULL", f"DELETE FROM {table}"):
            with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
                session.execute(text(statement))

# SPDX-License-Identifier: Apache-2.0
"""The register: narrowing at once by one, epochs without gaps, snapshots that replay, on both engines."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from town import PURPOSE, REGION, Town, base_manifest, consent, deployment, digest, expert_manifest

from model_core.packing.canonical import canonical_bytes
from policy.deciding.composition import compose
from policy.deciding.questions import Question
from policy.errors import (
    AssetConflict,
    EpochRegressed,
    MalformedSnapshot,
    NotAllowed,
    NotFound,
    NotYours,
    SnapshotMismatch,
    UnknownTerm,
)
from policy.facts.snapshot import Snapshot
from policy.records.items import ForbidRule, ForbidUse, GrantGive, ListingPut
from policy.tables import BaseRow


def test_nothing_is_permitted_before_everything_is(town: Town) -> None:
    """An expert serves only when it is listed, consented to, granted, and a rule and a deployment exist."""
    expert = town.expert()
    town.widen(town.dora, town.carl, deployment(town.base))
    assert town.members() == set()
    town.open_all(expert)
    assert town.members() == {expert.expert_id}


def test_withdrawal_is_one_act_and_final(town: Town) -> None:
    """One owner alone withdraws; the expert leaves with that epoch, and a second withdrawal is the first."""
    one, two = town.expert(name="one"), town.expert(name="two")
    town.open_all(one, two)
    before = town.act(lambda register: register.current_epoch())
    given = town.act(lambda register: register.consents("acme"))[0]
    publication = town.act(lambda register: register.withdraw_consent(given.id, town.ada))
    assert publication.epoch == before + 1
    assert town.members() == {two.expert_id}
    assert town.act(lambda register: register.withdraw_consent(given.id, town.alan)) == publication
    found = town.act(lambda register: register.consents("acme"))[0]
    assert found.state == "withdrawn"
    assert [(event.event, event.principal_id) for event in found.events] == [
        ("given", town.ada.id),
        ("withdrawn", town.ada.id),
    ]
    assert found.events[1].epoch == publication.epoch


def test_every_narrowing_takes_the_expert_out(town: Town) -> None:
    """Suspending, revoking, forbidding (owner and compliance) and suspending the owner each end the use."""
    experts = [town.expert(name=name) for name in ("one", "two", "three", "four")]
    other = town.expert("beta", "five")
    town.open_all(*experts, other)
    left = {expert.expert_id for expert in (*experts, other)}
    assert town.members() == left
    grant = next(one for one in town.act(lambda r: r.grants("acme")) if one.expert_id == experts[1].expert_id)
    acts = [
        (experts[0], lambda r: r.suspend_expert(experts[0].expert_id, town.ada)),
        (experts[1], lambda r: r.revoke_grant(grant.id, town.ada)),
        (experts[2], lambda r: r.forbid_use(ForbidUse(expert_id=experts[2].expert_id), town.alan)),
        (
            experts[3],
            lambda r: r.add_forbid_rule(ForbidRule(expert_id=experts[3].expert_id, text="no"), town.carl),
        ),
        (other, lambda r: r.suspend_tenant("beta", town.olga)),
    ]
    for expert, act in acts:
        town.act(act)
        left.remove(expert.expert_id)
        assert town.members() == left


def test_narrowing_frees_nobody(town: Town) -> None:
    """When a forbid is met by a later end of another fact, only a reviewed change lets experts in."""
    one, two = town.expert(name="one"), town.expert(name="two")
    town.open_all(one, two)
    rule = ForbidRule(expert_id=two.expert_id, text="for now")
    town.act(lambda register: register.add_forbid_rule(rule, town.carl))
    town.act(lambda register: register.suspend_expert(one.expert_id, town.ada))
    assert town.members() == set()
    with town.register() as register:
        fact = register.snapshot().deployments_by_name["shop-ask"]
        assert fact.members == ()


def test_removed_deployment_is_gone(town: Town) -> None:
    """A developer removes the endpoint alone, again without effect, and nobody finds it afterwards."""
    town.open_all(town.expert())
    first = town.act(lambda register: register.remove_deployment("shop-ask", town.dirk))
    assert town.act(lambda register: register.remove_deployment("shop-ask", town.dirk)) == first
    with town.register() as register:
        assert register.deployments() == []
        with pytest.raises(NotFound):
            register.deployment("shop-ask")


def test_objects_of_others_do_not_exist(town: Town) -> None:
    """Every narrowing act on another tenant's object is answered like one on nothing, word for word."""
    town.open_all(town.expert())
    with town.register() as register:
        consent_id = register.consents("acme")[0].id
        grant_id = register.grants("acme")[0].id
        expert_id = register.experts("acme")[0].expert_id
        acts = [
            (lambda i: register.withdraw_consent(i, town.bob), consent_id),
            (lambda i: register.revoke_grant(i, town.bob), grant_id),
            (lambda i: register.suspend_expert(i, town.bob), expert_id),
            (lambda i: register.forbid_use(ForbidUse(expert_id=i), town.bob), expert_id),
            (lambda i: register.remove_deployment(i, town.clara), "shop-ask"),
        ]
        for act, theirs in acts:
            with pytest.raises(NotYours) as hidden:
                act(theirs)
            with pytest.raises(NotFound) as missing:
                act("nothing")
            assert hidden.value.sentence == missing.value.sentence
            assert hidden.value.code == missing.value.code
        assert register.current_epoch() == 3


def test_roles_are_needed(town: Town) -> None:
    """People of the right tenant without the role, and owners in compliance's place, are refused."""
    town.open_all(town.expert())
    with town.register() as register:
        consent_id = register.consents("acme")[0].id
        developer = town.ada.model_copy(update={"roles": town.dora.roles})
        for act in (
            lambda: register.withdraw_consent(consent_id, developer),
            lambda: register.add_forbid_rule(ForbidRule(text="x"), town.ada),
            lambda: register.suspend_tenant("beta", town.ada),
        ):
            with pytest.raises(NotAllowed):
                act()
        with pytest.raises(UnknownTerm):
            register.add_forbid_rule(ForbidRule(text="x", purpose="no-such"), town.carl)


def test_admission_is_idempotent_and_versions_count(town: Town) -> None:
    """The same bundle is one version, another one the next; a bundle of somebody else is refused."""
    first, second = town.expert(), town.expert()
    assert (first.version, second.version, first.state) == (1, 2, "sealed")
    with town.register() as register:
        manifest = expert_manifest("acme", "letters", town.base)
        again = register.admit_expert(manifest, first.bundle_digest, first.dataset_ids, "acme")
        assert again == first
        with pytest.raises(AssetConflict):
            register.admit_expert(manifest, digest("new"), [], "beta")
        with pytest.raises(AssetConflict):
            register.admit_expert(
                expert_manifest("beta", "letters", town.base), first.bundle_digest, [], "beta"
            )
        with pytest.raises(NotFound):
            register.admit_expert(expert_manifest("acme", "x", digest("no base")), digest("new"), [], "acme")
        assert register.add_base(register.base(town.base).manifest, town.base) == register.list_bases()[0]
        changed = register.base(town.base).manifest.model_copy(update={"name": "other"})
        with pytest.raises(AssetConflict):
            register.add_base(changed, town.base)


def test_a_base_registered_before_fields_were_added_is_still_the_same_base(town: Town) -> None:
    """An upgrade that adds manifest fields with defaults does not make a registered base a conflict."""
    document = base_manifest().model_dump(mode="json")
    for added in ("d_head", "renormalise", "clip_qkv"):
        del document["shape"][added]
    with town.database.unit_of_work() as session:
        session.add(
            BaseRow(
                base_digest=digest("old"),
                name="tiny",
                license="CC0-1.0",
                status="active",
                manifest=canonical_bytes(document).decode(),
                added_at_us=town.now,
            )
        )
    with town.register() as register:
        assert register.add_base(base_manifest(), digest("old")).manifest == base_manifest()


def test_consent_ends_by_itself(town: Town) -> None:
    """At the very microsecond of its end a consent no longer permits, without any act."""
    expert = town.expert()
    town.open_all(expert)
    given = town.act(lambda register: register.consents("acme"))[0]
    end = town.now + 3_600_000_000
    town.act(lambda register: register.withdraw_consent(given.id, town.ada))
    town.widen(town.ada, town.alan, consent(expert, valid_until_us=end))
    with town.register() as register:
        snapshot = register.snapshot()
        permitted = [
            bool(compose(snapshot, Question(at_us=at, deployment="shop-ask")).members)
            for at in (end - 1, end)
        ]
        assert permitted == [True, False]


def test_epochs_have_no_gaps_even_by_raw_sql(town: Town) -> None:
    """Epochs count 1, 2, 3, …; the database refuses a gap, a repetition, a change and a deletion."""
    town.open_all(town.expert())
    with town.register() as register:
        assert [one.epoch for one in register.publications()] == list(range(1, 4))
    columns = "(epoch, at_us, snapshot_digest, reason, subject, principal_id, change_id)"
    attempts = [
        f"INSERT INTO publications {columns} VALUES (5, 1, 'x', 'x', 'x', NULL, NULL)",
        f"INSERT INTO publications {columns} VALUES (3, 1, 'x', 'x', 'x', NULL, NULL)",
        "UPDATE publications SET at_us = 1 WHERE epoch = 2",
        "UPDATE snapshots SET document = document",
        "DELETE FROM publications WHERE epoch = 3",
        "DELETE FROM snapshots",
    ]
    for statement in attempts:
        with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
            session.execute(text(statement))


def test_snapshot_is_checked_against_its_digest(town: Town) -> None:
    """Stored bytes that somebody changed behind the guards are refused, not served."""
    town.open_all(town.expert())
    with town.register() as register:
        good = register.snapshot()
        assert Snapshot.from_json(good.to_json(), good.digest) == good
        assert register.snapshot(2).epoch == 2
        with pytest.raises(NotFound):
            register.snapshot(9)
    with town.database.engine.begin() as connection:
        if town.database.is_sqlite:
            connection.execute(text("DROP TRIGGER guard_snapshots_update"))
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(
            text(
                "UPDATE snapshots SET document = "
                "(SELECT document FROM snapshots WHERE epoch = 1) WHERE epoch = 3"
            )
        )
    with town.register() as register, pytest.raises((SnapshotMismatch, MalformedSnapshot)):
        register.snapshot(3)


def test_a_clock_set_back_hinders_no_withdrawal(town: Town) -> None:
    """With a clock an hour in the past the withdrawal still publishes, and published times never fall."""
    expert = town.expert()
    town.open_all(expert)
    given = town.act(lambda register: register.consents("acme"))[0]
    town.now -= 3_600_000_000
    publication = town.act(lambda register: register.withdraw_consent(given.id, town.ada))
    with town.register() as register:
        assert register.publications()[-2].at_us <= publication.at_us
        assert register.snapshot().deployments_by_name["shop-ask"].members == ()


def test_servers_acknowledge_forward_only(town: Town) -> None:
    """A server's word counts for published snapshots only and never goes back to a lower epoch."""
    town.open_all(town.expert())
    with town.register() as register:
        digests = {one.epoch: one.snapshot_digest for one in register.publications()}
        register.acknowledge("host-1", 2, digests[2], {"shop-ask": "sha256:1"})
        register.acknowledge("host-1", 3, digests[3], {"shop-ask": "sha256:2"})
        register.acknowledge("host-1", 3, digests[3], {"shop-ask": "sha256:3"})
        register.acknowledge("host-2", 2, digests[2], {})
        with pytest.raises(EpochRegressed):
            register.acknowledge("host-1", 2, digests[2], {})
        with pytest.raises(SnapshotMismatch):
            register.acknowledge("host-1", 3, digests[2], {})
        with pytest.raises(NotFound):
            register.acknowledge("host-1", 9, digests[3], {})
        [ack] = register.acknowledgements(3)
        assert (ack.server_id, ack.compositions) == ("host-1", {"shop-ask": "sha256:3"})
        assert [(one.server_id, one.epoch) for one in register.servers()] == [("host-1", 3), ("host-2", 2)]


def test_decisions_are_logged_once_and_replay(town: Town) -> None:
    """The same answer within an epoch is one row, another epoch another; each replays to equal bytes."""
    expert = town.expert()
    town.open_all(expert)
    ids = []
    for _ in range(2):
        with town.register() as register:
            ids.append(register.record_decisions(register.deployment("shop-ask").composition))
    assert ids[0] == ids[1]
    town.act(lambda register: register.suspend_expert(expert.expert_id, town.ada))
    with town.register() as register:
        snapshot = register.snapshot()
        question = Question(
            at_us=town.now,
            tenant="shop",
            base_digest=town.base,
            purpose=PURPOSE,
            region=REGION,
            commercial=False,
        )
        ids.append(register.record_decisions(register.deployment("shop-ask").composition))
        ids.append(register.record_decisions(compose(snapshot, question), question))
        assert len(set(ids)) == 3
        assert all(register.replay(one).equal for one in ids)
        verdicts = [register.decision(one).verdicts[0].verdict for one in ids[1:]]
        assert verdicts == ["permit", "deny", "deny"]
        assert len(register.decisions(deployment="shop-ask")) == 2
        assert len(register.decisions(expert_id=expert.expert_id, epoch=snapshot.epoch)) == 2
        assert register.decisions(tenant="club") == []


def test_every_publication_logs_what_it_decides(town: Town) -> None:
    """Publishing logs the answer of every deployment that it changed, without anybody asking; others stay."""
    expert = town.expert()
    town.open_all(expert)
    with town.register() as register:
        before = register.decisions(deployment="shop-ask")
        assert before[0].epoch == register.current_epoch()
        assert [one.verdict for one in before[0].verdicts] == ["permit"]
    town.act(lambda register: register.suspend_expert(expert.expert_id, town.ada))
    with town.register() as register:
        after = register.decisions(deployment="shop-ask")
        assert len(after) == len(before) + 1
        assert [one.verdict for one in after[0].verdicts] == ["deny"]
        assert register.replay(after[0].id).equal


def test_a_tampered_decision_does_not_replay(town: Town) -> None:
    """A logged answer that somebody edited behind the guards is told apart by its replay."""
    town.open_all(town.expert())
    with town.register() as register:
        decision = register.record_decisions(register.deployment("shop-ask").composition)
    with pytest.raises(DBAPIError), town.database.unit_of_work() as session:
        session.execute(text("UPDATE decisions SET answer = '{}'"))
    with town.database.engine.begin() as connection:
        if town.database.is_sqlite:
            connection.execute(text("DROP TRIGGER guard_decisions_update"))
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE decisions SET answer = replace(answer, 'permit', 'deny')"))
    with town.register() as register:
        assert not register.replay(decision).equal


def test_a_price_counts_from_its_epoch(town: Town) -> None:
    """A new listing changes the price from the next epoch on, and the old one stays on record."""
    expert = town.expert()
    town.open_all(expert, price=5)
    listing = ListingPut(expert_id=expert.expert_id, price_micro_per_1k_tokens=9, license="Apache-2.0")
    town.widen(town.ada, town.alan, listing)
    with town.register() as register:
        found = register.expert(expert.expert_id)
        assert (found.price_micro_per_1k_tokens, found.license) == (9, "Apache-2.0")
        prices = [
            fact.price_micro_per_1k_tokens for epoch in (3, 4) for fact in register.snapshot(epoch).experts
        ]
        assert prices == [5, 9]


def test_grants_name_their_consumer(town: Town) -> None:
    """A grant to one tenant opens nothing to another."""
    expert = town.expert()
    town.open_all(expert)
    town.widen(town.clara, town.carl, deployment(town.base, "club-ask", "club"))
    assert town.members("club-ask") == set()
    town.widen(town.ada, town.alan, GrantGive(expert_id=expert.expert_id, consumer_tenant="club"))
    assert town.members("club-ask") == {expert.expert_id}

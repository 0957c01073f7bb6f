# SPDX-License-Identifier: Apache-2.0
"""The book of jobs: legal steps, fences, fairness, idempotency, on both engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_core.packing.canonical import merkle_root
from model_core.packing.manifest import DataCard
from tenants.accounts.accounts import Accounts
from tenants.accounts.database import Database
from tenants.accounts.datasets import Datasets
from tenants.accounts.jobs import MAX_ATTEMPTS, JobBook
from tenants.errors import IdempotencyConflict, IllegalTransition, StaleAttempt, UnknownObject
from tenants.jobs import FINAL, LEGAL, JobRecord, JobState, MetricPoint, check_transition
from tenants.roles import Role

NOW = 1_800_000_000_000_000
BASE = "sha256:" + "b" * 64
BUNDLE = "sha256:" + "c" * 64


class Workplace:
    """Two tenants with a dataset each, and a book in one unit of work."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.people: dict[str, str] = {}
        self.data: dict[str, str] = {}
        with database.unit_of_work() as session:
            for slug in ("acme", "beta"):
                Accounts(session, NOW).create_tenant(slug, slug)
                self.people[slug] = Accounts(session, NOW).create_key(slug, "ada", {Role.OWNER}).principal.id
                card = DataCard(documents=1, text_bytes=4, license="MIT", merkle_root=merkle_root([b"a"]))
                self.data[slug] = Datasets(session, NOW).add(slug, "letters", card, BASE, 4).id

    def submit(
        self, book: JobBook, tenant: str = "acme", *, key: str | None = None, steps: int = 3
    ) -> JobRecord:
        """Submits a job of a tenant."""
        return book.submit(
            tenant,
            self.people[tenant],
            "letters",
            self.data[tenant],
            BASE,
            recipe={"steps": steps},
            idempotency_key=key,
        )


@pytest.fixture
def workplace(database: Database) -> Workplace:
    """Two tenants with a dataset each."""
    return Workplace(database)


@pytest.fixture
def book(workplace: Workplace) -> Iterator[JobBook]:
    """A book within one unit of work."""
    with workplace.database.unit_of_work() as session:
        yield JobBook(session, NOW)


def test_final_states_are_never_left() -> None:
    """No legal step leads out of a final state, and every other state has a way to an end."""
    assert not [old for old, _ in LEGAL if old in FINAL]
    for old in JobState:
        for new in JobState:
            if (old, new) not in LEGAL:
                with pytest.raises(IllegalTransition):
                    check_transition(old, new)


def test_a_job_runs_to_its_bundle(workplace: Workplace, book: JobBook) -> None:
    """Claim, progress with curve points, seal, finish; finishing again changes nothing."""
    job = workplace.submit(book)
    claim = book.claim("foreman-1", 2)
    assert claim is not None
    assert (claim.job.id, claim.attempt, claim.job.state) == (job.id, 1, JobState.PLACED)
    points = [MetricPoint(step=n, name="loss", value=3.0 - n) for n in range(3)]
    book.progress(job.id, claim.fence, JobState.RUNNING, points, "training")
    book.progress(job.id, claim.fence, JobState.RUNNING, points[1:], "resumed")
    book.progress(job.id, claim.fence, JobState.SEALING, [], "sealing")
    done = book.finish(job.id, claim.fence, BUNDLE, {"expert_id": "exp_1"})
    assert (done.state, done.bundle_digest, done.result) == (
        JobState.SUCCEEDED,
        BUNDLE,
        {"expert_id": "exp_1"},
    )
    assert book.finish(job.id, claim.fence, BUNDLE) == done
    assert book.metrics(job.id) == points
    assert [event.new_state for event in book.history(job.id)] == [
        "queued",
        "placed",
        "running",
        "sealing",
        "succeeded",
    ]


def test_a_stale_fence_is_refused(workplace: Workplace, book: JobBook) -> None:
    """After a job is queued anew, nothing that the old attempt says is taken."""
    job = workplace.submit(book)
    old = book.claim("foreman-1", 2)
    assert old is not None
    assert [one.id for one in book.requeue_orphans("foreman-1")] == [job.id]
    for late in (old.fence, old.fence + 1):
        with pytest.raises(StaleAttempt):
            book.progress(job.id, late, JobState.RUNNING, [])
    new = book.claim("foreman-2", 2)
    assert new is not None
    assert new.fence > old.fence
    for act in (
        lambda: book.progress(job.id, old.fence, JobState.RUNNING, []),
        lambda: book.finish(job.id, old.fence, BUNDLE),
        lambda: book.fail(job.id, old.fence, "x", "x", retry=True),
        lambda: book.cancelled(job.id, old.fence),
    ):
        with pytest.raises(StaleAttempt):
            act()
    book.progress(job.id, new.fence, JobState.RUNNING, [])


def test_requeue_touches_only_the_dead_foreman(workplace: Workplace, book: JobBook) -> None:
    """Jobs of another foreman go on; None means everybody."""
    workplace.submit(book)
    workplace.submit(book, "beta")
    first, second = book.claim("foreman-1", 2), book.claim("foreman-2", 2)
    assert first is not None
    assert second is not None
    assert [job.id for job in book.requeue_orphans("foreman-1")] == [first.job.id]
    assert book.get(second.job.id).state is JobState.PLACED
    assert [job.id for job in book.requeue_orphans()] == [second.job.id]


def test_claims_are_fair_between_tenants(workplace: Workplace, book: JobBook) -> None:
    """A tenant with many jobs does not keep another waiting, and nobody passes its limit."""
    for _ in range(3):
        workplace.submit(book, "acme")
    workplace.submit(book, "beta")
    tenants = []
    while claim := book.claim("foreman-1", 2):
        tenants.append(claim.job.tenant)
    assert tenants == ["acme", "beta", "acme"]


def test_idempotency_key_names_one_job(workplace: Workplace, book: JobBook) -> None:
    """The same key and payload give the first job, another payload is refused, other tenants are free."""
    first = workplace.submit(book, key="k")
    assert workplace.submit(book, key="k").id == first.id
    with pytest.raises(IdempotencyConflict):
        workplace.submit(book, key="k", steps=4)
    assert workplace.submit(book, "beta", key="k").id != first.id
    assert len(book.list("acme")) == 1


def test_another_tenants_dataset_does_not_exist(workplace: Workplace, book: JobBook) -> None:
    """Naming somebody else's dataset is answered like naming none."""
    with pytest.raises(UnknownObject):
        book.submit("acme", workplace.people["acme"], "x", workplace.data["beta"], BASE, recipe={})


def test_failures_retry_until_attempts_are_spent(workplace: Workplace, book: JobBook) -> None:
    """A failed attempt queues the job again, the last one ends it; a failure without retry ends at once."""
    job = workplace.submit(book)
    for _ in range(MAX_ATTEMPTS):
        claim = book.claim("foreman-1", 2)
        assert claim is not None
        last = book.fail(job.id, claim.fence, "oom", "Out of memory.", retry=True)
    assert (last.state, last.attempts, last.error_code) == (JobState.FAILED, MAX_ATTEMPTS, "oom")
    assert book.claim("foreman-1", 2) is None
    other = workplace.submit(book)
    claim = book.claim("foreman-1", 2)
    assert claim is not None
    assert book.fail(other.id, claim.fence, "bad", "Bad data.", retry=False).state is JobState.FAILED


def test_cancelling(workplace: Workplace, book: JobBook) -> None:
    """A queued job ends at once; a live one when its attempt stops, also if that attempt dies."""
    queued = workplace.submit(book)
    assert book.request_cancel(queued.id).state is JobState.CANCELLED
    live, orphan = workplace.submit(book), workplace.submit(book)
    first, second = book.claim("foreman-1", 3), book.claim("foreman-2", 3)
    assert first is not None
    assert second is not None
    assert book.request_cancel(live.id).cancel_requested
    assert book.get(live.id).state is JobState.PLACED
    assert book.cancelled(live.id, first.fence).state is JobState.CANCELLED
    book.request_cancel(orphan.id)
    book.requeue_orphans("foreman-2")
    assert book.get(orphan.id).state is JobState.CANCELLED


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "run", "seal", "finish", "fail", "retry", "cancel", "orphan", "stale"]),
        st.integers(0, 3),
    ),
    max_size=30,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=ACTS)
def test_no_history_leaves_the_legal_steps(workplace: Workplace, acts: list[tuple[str, int]]) -> None:
    """Whatever is tried in whatever order: only legal steps are taken and at most one attempt is live."""
    with workplace.database.unit_of_work() as session:
        book = JobBook(session, NOW)
        jobs = [workplace.submit(book, tenant).id for tenant in ("acme", "acme", "beta", "beta")]
        for act, which in acts:
            job = book.get(jobs[which])
            try:
                match act:
                    case "claim":
                        book.claim("f", 2)
                    case "run":
                        book.progress(job.id, job.fence, JobState.RUNNING, [])
                    case "seal":
                        book.progress(job.id, job.fence, JobState.SEALING, [])
                    case "finish":
                        book.finish(job.id, job.fence, BUNDLE)
                    case "fail" | "retry":
                        book.fail(job.id, job.fence, "x", "x", retry=act == "retry")
                    case "cancel":
                        book.request_cancel(job.id)
                    case "orphan":
                        book.requeue_orphans("f")
                    case _:
                        book.progress(job.id, job.fence - 1, JobState.RUNNING, [])
            except (StaleAttempt, IllegalTransition):
                assert book.get(job.id) == job
        for job_id in jobs:
            steps = [(event.old_state, event.new_state) for event in book.history(job_id)][1:]
            assert all((JobState(old), JobState(new)) in LEGAL for old, new in steps)
        session.rollback()

# SPDX-License-Identifier: Apache-2.0
"""A foreman follows jobs through lost answers, dead workshops, cancellations and its own death."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import OfficeUnavailable, WeighingFailed
from cluster.jobs.attempt import AttemptReport
from cluster.jobs.errors import WorkshopGone
from cluster.jobs.follower import JobFollower
from cluster.jobs.foreman import node_selector
from cluster.office.protocol import JobClaim, JobDirection, JobOutcome, MetricReading
from model_core.errors import BundleWrongBase
from tenants.errors import StaleAttempt


class Office:
    """Jobs in memory with attempts and fences; may be away for a while."""

    def __init__(self, *jobs: str) -> None:
        self.state = dict.fromkeys(jobs, "queued")
        self.fences = dict.fromkeys(jobs, 0)
        self.curves: dict[str, dict[int, float]] = {job: {} for job in jobs}
        self.history: list[tuple[str, str]] = []
        self.cancelled: set[str] = set()
        self.away: Iterator[bool] = iter(())
        self.refuse_bundles = False
        self.weighs: Callable[[str], bool] = lambda _job: False
        self.unweighable = 0

    def _here(self) -> None:
        if next(self.away, False):
            raise OfficeUnavailable("The office does not answer.")

    def _fenced(self, job: str, fence: int) -> None:
        if self.fences[job] != fence or self.state[job] not in ("placed", "running", "sealing"):
            raise StaleAttempt("Superseded.")

    def _move(self, job: str, state: str) -> None:
        self.state[job] = state
        self.history.append((job, state))

    async def claim_job(self, foreman_id: str, max_running_per_tenant: int = 1) -> JobClaim | None:
        """The first queued job."""
        self._here()
        for job, state in self.state.items():
            if state == "queued":
                self.fences[job] += 1
                self._move(job, "placed")
                return claim(job, self.fences[job])
        return None

    async def requeue_orphans(self, foreman_id: str) -> list[str]:
        """Queues what runs."""
        self._here()
        orphans = [job for job, state in self.state.items() if state in ("placed", "running", "sealing")]
        for job in orphans:
            self._move(job, "queued")
        return orphans

    async def job_progress(
        self, job_id: str, fence: int, state: str, metrics: list[MetricReading], message: str = ""
    ) -> JobDirection:
        """Takes points and a state."""
        self._here()
        self._fenced(job_id, fence)
        if state != self.state[job_id]:
            self._move(job_id, state)
        self.curves[job_id] |= {point.step: point.value for point in metrics}
        return JobDirection(cancel_requested=job_id in self.cancelled)

    async def finish_job(self, job_id: str, fence: int, bundle_folder: str) -> JobOutcome:
        """Ends a job well, or refuses its bundle."""
        self._here()
        self._fenced(job_id, fence)
        if self.refuse_bundles:
            raise BundleWrongBase("Not the base.")
        if self.unweighable:
            self.unweighable -= 1
            raise WeighingFailed("No memory.")
        while self.weighs(job_id):
            await asyncio.sleep(0.001)
        self._move(job_id, "succeeded")
        return JobOutcome(expert_id="exp_1", bundle_digest="sha256:" + "0" * 64)

    async def fail_job(self, job_id: str, fence: int, code: str, sentence: str, *, retry: bool) -> None:
        """Ends an attempt."""
        self._here()
        self._fenced(job_id, fence)
        self._move(job_id, "queued" if retry else f"failed: {code}")


def claim(job: str, fence: int) -> JobClaim:
    """A claim of a job."""
    fields: dict[str, Any] = dict.fromkeys(
        ("dataset_id", "dataset_digest", "dataset_path", "base_digest", "work_folder", "signing_key_path"),
        "x",
    )
    return JobClaim(job_id=job, tenant="acme", name=job, attempt=fence, fence=fence, recipe={}, **fields)


class Workshop:
    """Says its reports one by one; an exception in the list is raised, and the last one is repeated."""

    def __init__(self, *reports: AttemptReport | Exception) -> None:
        self.reports = list(reports)
        self.stopped = self.ended = False

    async def report(self) -> AttemptReport:
        """The next report of the plan."""
        if self.stopped:
            return AttemptReport(state="stopped")
        said = self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]
        if isinstance(said, Exception):
            raise said
        return said

    async def stop(self) -> None:
        """Notes it."""
        self.stopped = True

    async def end(self) -> None:
        """Notes it."""
        self.ended = True


def running(*steps: int) -> AttemptReport:
    """A report with points of a loss curve."""
    return AttemptReport(
        state="running", metrics=tuple(MetricReading(step=s, name="loss", value=1 / (s + 1)) for s in steps)
    )


SEALED = AttemptReport(state="sealed", bundle_folder="x")


def follow(
    office: Office, until: Callable[[], bool], *plans: list[AttemptReport | Exception]
) -> list[Workshop]:
    """Runs a follower whose workshops follow the given plans, until a condition holds."""
    opened: list[Workshop] = []

    def open_workshop(_claim: JobClaim) -> Workshop:
        opened.append(Workshop(*plans[min(len(opened), len(plans) - 1)]))
        return opened[-1]

    async def story() -> None:
        follower = JobFollower(office, open_workshop, look_s=0.001, report_s=0.0, placement_s=0.2)
        task = asyncio.create_task(follower.run())
        async with asyncio.timeout(5):
            while not until() and not task.done():
                await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
    return opened


def test_job_goes_its_way_and_its_curve_arrives() -> None:
    """placed, running, sealing, succeeded; every point is stored; the workshop is ended."""
    office = Office("job_1")
    opened = follow(
        office, lambda: office.state["job_1"] == "succeeded", [running(0), running(1, 2), running(3), SEALED]
    )
    assert [state for _, state in office.history] == ["placed", "running", "sealing", "succeeded"]
    assert sorted(office.curves["job_1"]) == [0, 1, 2, 3]
    assert [workshop.ended for workshop in opened] == [True]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), max_size=25))
def test_absent_office_loses_no_point_and_no_job(away: list[bool]) -> None:
    """Whenever the office is away, what was to be said is said later."""
    office = Office("job_1", "job_2")
    office.away = iter(away)
    follow(
        office,
        lambda: set(office.state.values()) == {"succeeded"},
        [running(0), running(1), running(2, 3), SEALED],
    )
    assert all(sorted(curve) == [0, 1, 2, 3] for curve in office.curves.values())


def test_dead_workshop_is_replaced() -> None:
    """Its job is queued again and the next attempt carries a higher fence."""
    office = Office("job_1")
    opened = follow(
        office,
        lambda: office.state["job_1"] == "succeeded",
        [running(0), WorkshopGone("Gone.")],
        [running(1), SEALED],
    )
    assert len(opened) == 2
    assert office.fences["job_1"] == 2


def test_failure_that_may_not_be_retried_ends_the_job() -> None:
    """The child's own word decides."""
    office = Office("job_1")
    bad = AttemptReport(state="failed", code="recipe_refused", sentence="Unknown name.", retry=False)
    opened = follow(office, lambda: office.state["job_1"].startswith("failed"), [bad])
    assert office.state["job_1"] == "failed: recipe_refused"
    assert len(opened) == 1


def test_refused_bundle_fails_the_job_with_the_reason() -> None:
    """Admission's refusal is final."""
    office = Office("job_1")
    office.refuse_bundles = True
    follow(office, lambda: office.state["job_1"].startswith("failed"), [running(0), SEALED])
    assert office.state["job_1"] == "failed: bundle_wrong_base"


def test_a_long_admission_holds_up_no_other_job() -> None:
    """While one expert is weighed, the curves of others arrive and their jobs end."""
    office = Office("job_1", "job_2")
    office.weighs = lambda job: job == "job_1" and office.state["job_2"] != "succeeded"
    follow(
        office,
        lambda: set(office.state.values()) == {"succeeded"},
        [running(0), SEALED],
        [running(0), running(1), running(2), SEALED],
    )
    assert sorted(office.curves["job_2"]) == [0, 1, 2]


def test_an_expert_that_could_not_be_weighed_gets_another_attempt() -> None:
    """Nothing is known about it yet, so the job is not failed for good."""
    office = Office("job_1")
    office.unweighable = 1
    follow(office, lambda: office.state["job_1"] == "succeeded", [running(0), SEALED])
    assert office.fences["job_1"] == 2


def test_cancelled_job_is_stopped_and_said_to_be_cancelled() -> None:
    """The wish comes back with a report; the child gets its checkpoint; nothing is retried."""
    office = Office("job_1")
    office.cancelled.add("job_1")
    opened = follow(office, lambda: office.state["job_1"] == "cancelled", [running(0)])
    assert opened[0].stopped
    assert opened[0].ended


def test_cancelled_while_waiting_for_a_node() -> None:
    """A job that found no node yet ends at once."""
    office = Office("job_1")
    office.cancelled.add("job_1")
    follow(office, lambda: office.state["job_1"] == "cancelled", [TimeoutError()])


def test_job_without_a_node_is_queued_again_in_time() -> None:
    """Ray waits for ever; the foreman does not."""
    office = Office("job_1")
    follow(office, lambda: office.fences["job_1"] == 2, [TimeoutError()], [running(0)])


def test_next_foreman_takes_over_what_the_last_one_followed() -> None:
    """Orphans are queued first; reports of the old attempt would be stale."""
    office = Office("job_1")
    follow(office, lambda: office.state["job_1"] == "running", [running(0)])
    follow(office, lambda: office.state["job_1"] == "succeeded", [running(1), SEALED])
    states = [state for _, state in office.history]
    assert states == ["placed", "running", "queued", "placed", "running", "sealing", "succeeded"]
    with pytest.raises(StaleAttempt):
        asyncio.run(office.job_progress("job_1", 1, "running", []))


def test_superseded_attempt_is_ended_without_a_word() -> None:
    """Another attempt holds the job: this one only goes away."""
    office = Office("job_1")

    def superseded() -> bool:
        if office.state["job_1"] == "running" and office.fences["job_1"] == 1:
            office.fences["job_1"] = 2
        return bool(opened and opened[0].ended)

    opened: list[Workshop] = []

    async def story() -> None:
        follower = JobFollower(
            office, lambda _: opened.append(Workshop(running(0))) or opened[-1], look_s=0.001, report_s=0.0
        )
        task = asyncio.create_task(follower.run())
        async with asyncio.timeout(5):
            while not superseded():
                await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(story())
    assert office.state["job_1"] == "running"


def test_node_selector_keeps_tenants_apart() -> None:
    """Own nodes if there are some, never another tenant's, nobody's otherwise."""
    nodes = [{"marketplace": "head"}, {"tenant": "anna"}, {"tenant": "ben"}]
    assert node_selector("anna", nodes) == {"tenant": "anna"}
    assert node_selector("cleo", nodes) == {"tenant": "!in(anna,ben)"}
    assert node_selector("cleo", nodes[:1]) == {}

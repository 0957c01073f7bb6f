# SPDX-License-Identifier: Apache-2.0
"""Training jobs: data and settings, never code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from cluster.errors import InvalidRequest
from cluster.operations.scope import check_own, check_visible, cut, tenant_scope
from cluster.operations.table import READERS, Answer, Operation, Page, Request
from tenants.jobs import JobEvent, JobRecord, MetricPoint
from tenants.roles import Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk

Setting = bool | int | float | str

MAX_POINTS = 2000


class NewJob(Request):
    """A job to be."""

    name: str = Field(max_length=63, description="the name that the expert will carry")
    dataset_id: str = Field(max_length=60)
    base_digest: str | None = Field(
        default=None, max_length=71, description="the base to train against; may be left out if there is one"
    )
    recipe: dict[str, Setting] = Field(default_factory=dict, max_length=64, description="training settings")


class JobId(Request):
    """Which job."""

    job_id: str = Field(max_length=60)


class CurveRequest(JobId):
    """Which curves of which job."""

    name: str | None = Field(default=None, max_length=100, description="one curve, or all")
    after_step: int = Field(default=-1, ge=-1, lt=2**53, description="only points after this step")


class JobView(Answer):
    """A job as its owner sees it."""

    id: str
    tenant: str
    name: str
    dataset_id: str
    base_digest: str
    recipe: dict[str, Any]
    state: str
    message: str
    attempts: int
    cancel_requested: bool
    bundle_digest: str | None
    result: dict[str, Any]
    error_code: str | None
    error_sentence: str | None
    created_at_us: int
    updated_at_us: int
    finished_at_us: int | None


class JobDetail(JobView):
    """A job with what happened to it."""

    history: tuple[JobEvent, ...]


class JobPage(Answer):
    """Jobs, newest first."""

    items: tuple[JobView, ...]
    next: str | None = None


class Curves(Answer):
    """Points of a job's curves, by name and step; long curves are thinned evenly."""

    job_id: str
    state: str
    points: tuple[MetricPoint, ...]
    thinned: bool = False


def submit(desk: Desk, principal: Principal, request: NewJob) -> JobView:
    """Queues a job on one's own dataset."""
    base_digest = request.base_digest or only_base(desk)
    desk.register.base(base_digest)  # refuses one that is not there
    _check_recipe(request.recipe)
    record = desk.jobs.submit(
        principal.tenant,
        principal.id,
        request.name,
        request.dataset_id,
        base_digest,
        recipe=dict(request.recipe),
    )
    return _view(record)


def listed(desk: Desk, principal: Principal, request: Page) -> JobPage:
    """One's own jobs; operators and auditors see all."""
    items, after = cut(desk.jobs.list(tenant_scope(principal)), request, lambda row: row.id)
    return JobPage(items=tuple(_view(row) for row in items), next=after)


def show(desk: Desk, principal: Principal, request: JobId) -> JobDetail:
    """One job and its history."""
    record = _visible(desk, principal, request.job_id)
    return JobDetail(**_view(record).model_dump(), history=tuple(desk.jobs.history(record.id)))


def metrics(desk: Desk, principal: Principal, request: CurveRequest) -> Curves:
    """The curves of a job."""
    record = _visible(desk, principal, request.job_id)
    points = [
        point
        for point in desk.jobs.metrics(record.id)
        if point.step > request.after_step and request.name in {None, point.name}
    ]
    kept = _thinned(points)
    return Curves(job_id=record.id, state=record.state, points=tuple(kept), thinned=len(kept) < len(points))


def cancel(desk: Desk, principal: Principal, request: JobId) -> JobView:
    """Asks for the end of a job."""
    record = _visible(desk, principal, request.job_id)
    if not principal.has(Role.OPERATOR):
        check_own(principal, record.tenant, what="job")
    return _view(desk.jobs.request_cancel(record.id))


def _visible(desk: Desk, principal: Principal, job_id: str) -> JobRecord:
    record = desk.jobs.get(job_id)
    check_visible(principal, record.tenant, what="job")
    return record


def only_base(desk: Desk) -> str:
    """The base where there is exactly one, so that newcomers need not name it.

    Raises:
        InvalidRequest: there is none, or there are several.
    """
    bases = desk.register.list_bases()
    if len(bases) != 1:
        raise InvalidRequest(
            f"There are {len(bases)} bases. Say with base_digest which one to train against.",
            fields=[{"field": "base_digest", "reason": "is needed unless there is exactly one base"}],
        )
    return bases[0].base_digest


def _check_recipe(recipe: dict[str, Setting]) -> None:
    for name, value in recipe.items():
        if len(name) > 64 or (isinstance(value, str) and len(value) > 1000):
            raise InvalidRequest(
                "A setting of the recipe is too long. Names take 64 characters, texts 1000.",
                fields=[{"field": f"recipe.{name[:64]}", "reason": "is too long"}],
            )


def _thinned(points: list[MetricPoint]) -> list[MetricPoint]:
    by_name: dict[str, list[MetricPoint]] = {}
    for point in points:
        by_name.setdefault(point.name, []).append(point)
    room = max(2, MAX_POINTS // max(1, len(by_name)))
    kept: list[MetricPoint] = []
    for curve in by_name.values():
        stride = -(-len(curve) // room)
        # The last point is what people look at first, so it always stays.
        kept += [point for place, point in enumerate(curve) if (len(curve) - 1 - place) % stride == 0]
    return kept


def _view(record: JobRecord) -> JobView:
    return JobView.model_validate(record.model_dump(mode="json"))


_JOB = {"job_id": "job_0198f0c2a1b37c4e8d5f60718293a4b5"}

ROWS = (
    Operation(
        name="jobs.submit",
        method="POST",
        path="/jobs",
        roles=frozenset({Role.OWNER}),
        request=NewJob,
        response=JobView,
        run=submit,
        summary="Queues the training of an expert on one of your datasets.",
        example={
            "name": "notes",
            "dataset_id": "dat_0198f0c2a1b37c4e8d5f60718293a4b5",
            "recipe": {"steps": 200},
        },
        isolated=True,
    ),
    Operation(
        name="jobs.list",
        method="GET",
        path="/jobs",
        roles=READERS,
        request=Page,
        response=JobPage,
        run=listed,
        summary="Lists your jobs, newest first.",
        isolated=True,
    ),
    Operation(
        name="jobs.show",
        method="GET",
        path="/jobs/{job_id}",
        roles=READERS,
        request=JobId,
        response=JobDetail,
        run=show,
        summary="Shows a job and what happened to it.",
        example=_JOB,
        isolated=True,
    ),
    Operation(
        name="jobs.metrics",
        method="GET",
        path="/jobs/{job_id}/metrics",
        roles=READERS,
        request=CurveRequest,
        response=Curves,
        run=metrics,
        summary="Gives the points of a job's curves.",
        example=_JOB,
        isolated=True,
    ),
    Operation(
        name="jobs.cancel",
        method="POST",
        path="/jobs/{job_id}/cancel",
        roles=frozenset({Role.OWNER, Role.OPERATOR}),
        request=JobId,
        response=JobView,
        run=cancel,
        summary="Asks for the end of a job.",
        example=_JOB,
        isolated=True,
    ),
)

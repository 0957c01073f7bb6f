# SPDX-License-Identifier: Apache-2.0
"""What a workshop and its training child say to each other: one job line in, event lines out.

The parent writes one :class:`JobSpec` as a JSON line to the child's standard input. The child writes
:data:`ChildEvent` values as JSON lines to its standard output and ends with exit status 0 (done), 1 (failed)
or 3 (stopped on SIGTERM after a checkpoint). Everything the child says is untrusted: a line is bounded,
parsed as JSON, validated, and never unpickled or evaluated. The module knows neither torch nor processes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from tenants.errors import TenantsError

#: Longest accepted line of the child, in bytes.
MAX_LINE_BYTES = 64 * 1024
#: Most bytes a child may say in one attempt.
MAX_TALK_BYTES = 64 * 1024 * 1024
#: Exit status of a child that was asked to stop and wrote its checkpoint first.
EXIT_STOPPED = 3

#: Files of the unsigned bundle that a child leaves in its output folder.
OUTPUT_FILES = ("manifest.json", "expert.safetensors", "metrics.jsonl")

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,63}$")]


class WorkshopProtocolViolated(TenantsError):
    """A training child said something that is not in the protocol; its attempt is ended."""

    code = "workshop_protocol_violated"


class JobSpec(BaseModel):
    """The one line that tells a child what to train. It holds no credential and no other tenant's path.

    Attributes:
        job_id: the job.
        attempt: 1 for the first attempt; a later attempt resumes from the work folder's checkpoint.
        tenant: slug of the owner.
        name: name of the expert version to make.
        base_folder: verified base bundle, readable only.
        base_digest: its digest.
        dataset_file: the tenant's documents as JSON lines, readable only.
        work_folder: the child's own folder (checkpoints, scratch), kept between attempts.
        output_folder: folder inside ``work_folder`` that receives ``OUTPUT_FILES``.
        recipe: training options.
        threads: compute threads the child may use.
        created_at_us: stamped into the manifest, so that a resumed attempt makes the same bytes.
        data_license: SPDX expression of the documents, for the expert's data card.
        data_description: the owner's words about them, for the data card.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = 1
    job_id: str
    attempt: int = 1
    tenant: str
    name: str
    base_folder: str
    base_digest: str
    dataset_file: str
    work_folder: str
    output_folder: str
    recipe: dict[str, bool | int | float | str] = Field(default_factory=dict)
    threads: int = 1
    created_at_us: int = 0
    data_license: str = "LicenseRef-unstated"
    data_description: str = ""

    def to_line(self) -> bytes:
        """The JSON line for the child's standard input, newline included."""
        return self.model_dump_json().encode() + b"\n"


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=False)


class PhaseEvent(_Event):
    """The child entered a phase (``tokenise``, ``train``, ``evaluate``, ``calibrate``, ``pack``...)."""

    kind: Literal["phase"] = "phase"
    name: _Name
    message: str = Field(default="", max_length=500)


class MetricEvent(_Event):
    """One point of a curve."""

    kind: Literal["metric"] = "metric"
    step: int = Field(ge=0, le=2**53)
    name: _Name
    value: FiniteFloat


class ProgressEvent(_Event):
    """How far the current phase is."""

    kind: Literal["progress"] = "progress"
    done: int = Field(ge=0, le=2**53)
    total: int = Field(ge=0, le=2**53)


class DoneEvent(_Event):
    """The output folder is complete; nothing follows."""

    kind: Literal["done"] = "done"
    manifest_digest: str = Field(default="", max_length=100)


class ErrorEvent(_Event):
    """The attempt failed; ``retry`` says whether another attempt may succeed."""

    kind: Literal["error"] = "error"
    code: _Name = "training_failed"
    sentence: str = Field(default="The training failed.", max_length=1000)
    retry: bool = False


ChildEvent = PhaseEvent | MetricEvent | ProgressEvent | DoneEvent | ErrorEvent

_EVENT: TypeAdapter[ChildEvent] = TypeAdapter(Annotated[ChildEvent, Field(discriminator="kind")])
_SPEC: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)


def parse_spec(line: bytes) -> JobSpec:
    """Reads the job line.

    Raises:
        WorkshopProtocolViolated: if the line is no job spec.
    """
    try:
        return _SPEC.validate_json(line)
    except ValidationError as err:
        sentence = "The job line does not parse; start the child through its workshop."
        raise WorkshopProtocolViolated(sentence) from err


def parse_event(line: bytes) -> ChildEvent:
    """Reads one line of a child.

    Raises:
        WorkshopProtocolViolated: if the line is too long or not an event. The line itself is not quoted: it
            may hold the tenant's text.
    """
    if len(line) > MAX_LINE_BYTES:
        raise WorkshopProtocolViolated(
            "The training child wrote a line above the limit; the attempt was ended.",
            size_bytes=len(line),
            limit_bytes=MAX_LINE_BYTES,
        )
    try:
        return _EVENT.validate_json(line)
    except ValidationError as err:
        kinds = sorted({problem["type"] for problem in err.errors()})
        raise WorkshopProtocolViolated(
            "The training child wrote a line that is no event; the attempt was ended.", problems=kinds
        ) from None


def event_line(event: ChildEvent) -> bytes:
    """The JSON line of an event, newline included (the child's side)."""
    return event.model_dump_json().encode() + b"\n"

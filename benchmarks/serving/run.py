# SPDX-License-Identifier: Apache-2.0
"""Works off a plan: measures each job or takes its kept result, and gives the rows."""

from __future__ import annotations

import gc
from typing import Any

from benchmarks.report import Row
from benchmarks.serving import growth, sets
from benchmarks.serving.arithmetic import Arithmetic
from benchmarks.serving.bandwidth import ReadMeter
from benchmarks.serving.case import SMALL, Cell
from benchmarks.serving.cells import measure_cell
from benchmarks.serving.kept import Kept
from benchmarks.serving.measured import Measured, rows_of
from benchmarks.serving.plan import Job
from benchmarks.serving.stage import Stage


class Runner:
    """Measures jobs.

    Args:
        kept: results of earlier jobs.
        arithmetic: what computes our side.
        threads: of all sides.
        resume: whether kept results are taken.
        missing: peers that cannot take part here.
    """

    def __init__(
        self, kept: Kept, *, arithmetic: Arithmetic, threads: int, resume: bool, missing: frozenset[str]
    ) -> None:
        self._kept, self._arithmetic, self._threads = kept, arithmetic, threads
        self._resume, self._missing = resume, missing
        self._stage: Stage | None = None
        self._meter = ReadMeter()

    def rows(self, job: Job) -> list[Row]:
        """The rows of a job; measured only where no kept result may be taken."""
        settings = self._settings(job)
        result = self._kept.find(settings) if self._resume else None
        if result is None:
            result = self._measure(job)
            self._kept.keep(settings, result)
        return read_rows(job, result)

    def has(self, job: Job) -> bool:
        """Whether the result of a job is kept."""
        return self._kept.find(self._settings(job)) is not None

    def close(self) -> None:
        """Lets the last world go."""
        if self._stage is not None:
            self._stage.close()
            self._stage = None
            gc.collect()

    def _settings(self, job: Job) -> dict[str, Any]:
        return job.settings() | {"missing": sorted(self._missing & set(job.peers))}

    def _measure(self, job: Job) -> dict[str, Any]:
        if job.cell is not None:
            peers = [peer for peer in job.peers if peer not in self._missing]
            found = measure_cell(
                self._stage_of(job.cell),
                job.cell,
                peers=peers,
                meter=self._meter,
                native=self._arithmetic.native,
            )
            return found.to_json()
        self.close()
        if job.kind == "sets":
            return sets.measure_sets(SMALL, arithmetic=self._arithmetic).to_json()
        if job.kind == "growth":
            return growth.measure_growth(arithmetic=self._arithmetic, meter=self._meter).to_json()
        # Ray, the database and the web server are only needed here.
        from benchmarks.serving.streaming import measure_streaming

        return measure_streaming(arithmetic=self._arithmetic, threads=self._threads).to_json()

    def _stage_of(self, cell: Cell) -> Stage:
        here = self._stage
        if here is None or (here.sizes, here.number_format) != (cell.sizes, cell.number_format):
            self.close()
            here = Stage(cell.sizes, cell.number_format, arithmetic=self._arithmetic, threads=self._threads)
            self._stage = here
        return here


def read_rows(job: Job, result: dict[str, Any]) -> list[Row]:
    """The rows that follow from a result."""
    if job.kind == "cell":
        return rows_of(Measured.from_json(result))
    if job.kind == "sets":
        return sets.rows_of_sets(sets.MixedSets(**result))
    if job.kind == "growth":
        return growth.rows_of_growth(growth.Growth(**result))
    from benchmarks.serving.streaming import Streaming, rows_of_streaming

    return rows_of_streaming(Streaming.from_json(result))

# SPDX-License-Identifier: Apache-2.0
"""Which cells the quick and the full benchmark measure, in an order in which each world is made once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks.serving.case import LARGER, SMALL, SMALL_OLMOE, Cell, Format, Sizes
from benchmarks.serving.measured import BATCH, GENERATE, LLAMA

Kind = Literal["cell", "sets", "growth", "streaming"]
# By prompt length and concurrency: rounds, and new tokens that are counted. Long batches take minutes a turn.
_FEW_ROUNDS_FROM = 8192
_FEW_ROUNDS_OF_LARGER_FROM = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One thing to measure.

    Attributes:
        kind: what.
        cell: the setting, of kind ``cell``.
        peers: who takes part beside us.
    """

    kind: Kind
    cell: Cell | None = None
    peers: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For people."""
        return self.kind if self.cell is None else self.cell.label

    def settings(self) -> dict[str, Any]:
        """Everything that it depends on, for its digest."""
        return asdict(self)


def quick_jobs() -> list[Job]:
    """What a quarter of an hour holds: the smaller shape in fp32."""
    jobs = [*_cells(SMALL, "fp32", (1, 8, 32), (64,)), *_cells(SMALL, "fp32", (1,), (1024,))]
    jobs += _cells(SMALL_OLMOE, "fp32", (1, 8, 32), (64,))
    return [*jobs, Job(kind="sets"), Job(kind="growth")]


def full_jobs() -> list[Job]:
    """The whole matrix; what the quick one measures comes first."""
    jobs = quick_jobs()
    both: tuple[Format, ...] = ("fp32", "bf16")
    for number_format in both:
        jobs += _cells(SMALL, number_format, (1, 8, 32), (64, 1024))
        jobs += _cells(SMALL_OLMOE, number_format, (1, 8, 32), (64, 1024))
        jobs += _cells(LARGER, number_format, (1, 8), (64, 1024))
    jobs += _cells(SMALL, "int8", (1, 8, 32), (64,))
    jobs.append(Job(kind="streaming"))
    return list(dict.fromkeys(jobs))


def _cells(
    sizes: Sizes, number_format: Format, concurrencies: tuple[int, ...], prompts: tuple[int, ...]
) -> list[Job]:
    if number_format == "int8":
        peers: tuple[str, ...] = ()
    elif sizes.family == "olmoe":
        peers = (GENERATE, LLAMA)
    else:
        peers = (GENERATE, BATCH)
    found = []
    for prompt_tokens in prompts:
        for concurrency in concurrencies:
            long = sizes is LARGER and prompt_tokens >= _FEW_ROUNDS_OF_LARGER_FROM
            heavy = prompt_tokens * concurrency >= _FEW_ROUNDS_FROM or long
            cell = Cell(
                sizes=sizes,
                number_format=number_format,
                concurrency=concurrency,
                prompt_tokens=prompt_tokens,
                new_tokens=16 if heavy else 32,
                rounds=2 if heavy else 5,
            )
            found.append(Job(kind="cell", cell=cell, peers=peers))
    return found

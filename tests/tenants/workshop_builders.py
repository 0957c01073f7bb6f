# SPDX-License-Identifier: Apache-2.0
"""Jobs that tests of the workshop share; tensor libraries are loaded only when one is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tenants.workshop.protocol import JobSpec

if TYPE_CHECKING:
    from model_core.packing.bundle import CheckedBundle


def tiny_base(folder: Path) -> CheckedBundle:
    """A tiny sealed base."""
    import training_builders

    base: CheckedBundle = training_builders.tiny_base(folder)
    return base


def small_job(base: CheckedBundle, folder: Path, recipe: Mapping[str, bool | int | float | str]) -> JobSpec:
    """Acme's job over forty small documents beside a base."""
    import training_builders

    from model_core.text.documents import write_documents

    write_documents(folder / "data.jsonl", training_builders.texts("own", 40))
    return JobSpec(
        job_id="job_1",
        tenant="acme",
        name="acme-code",
        base_folder=str(base.folder),
        base_digest=base.digest,
        dataset_file=str(folder / "data.jsonl"),
        work_folder=str(folder / "work"),
        output_folder=str(folder / "work" / "out"),
        recipe=dict(recipe),
        created_at_us=7,
        data_license="MIT",
    )

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
from workshop_builders import small_job, tiny_base

from model_core.errors import RecipeRefused
from model_core.packing.manifest import parse_expert_manifest
from tenants.workshop.protocol import ChildEvent, JobSpec, MetricEvent
from tenants.workshop.workbench import run_job

_RECIPE: dict[str, bool | int | float | str] = {
    "steps": 4,
    "batch_rows": 4,
    "sequence_tokens": 32,
    "precision": "fp32",
    "fit_tokens": 64,
    "gated": False,
    "dp_noise_multiplier": 1.5,
}


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    """A private job over forty small documents."""
    return small_job(tiny_base(tmp_path / "base"), tmp_path, _RECIPE)


def test_a_private_jobs_manifest_says_what_is_guaranteed_and_tells_nothing_else(spec: JobSpec) -> None:
    """Epsilon, delta, unit, sampling and accountant stand in it; no figure on own text, and no key."""
    events: list[ChildEvent] = []
    run_job(spec, events.append)
    output = Path(spec.output_folder)
    manifest = parse_expert_manifest((output / "manifest.json").read_bytes())
    assert manifest.recipe["dp_unit"] == "document"
    assert manifest.recipe["dp_sampling"] == "poisson"
    assert manifest.recipe["dp_delta"] == 1e-5
    assert manifest.recipe["dp_epsilon"] == manifest.metrics["dp_epsilon"]
    assert 1 < manifest.metrics["dp_epsilon"] < 10
    assert str(manifest.recipe["dp_accountant"]).startswith("opacus ")
    assert not manifest.gated
    assert manifest.calibration == {}
    assert set(manifest.metrics) <= {
        "public_bits_per_byte_base", "public_bits_per_byte_pair", "public_loss_final", "train_tokens",
        "dp_epsilon", "expert_bytes",
    }  # fmt: skip
    told = {event.name for event in events if isinstance(event, MetricEvent)}
    assert told <= {"loss", "tokens_per_s", "eta_s", *manifest.metrics}
    (key,) = Path(spec.work_folder).rglob("privacy.key")
    secret = key.read_bytes()
    for file in output.iterdir():
        assert secret not in file.read_bytes()
        assert secret.hex().encode() not in file.read_bytes()
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 4


def test_a_private_job_with_too_few_documents_is_refused_before_training(spec: JobSpec) -> None:
    """A batch that is larger than the data set cannot be sampled from it."""
    events: list[ChildEvent] = []
    with pytest.raises(RecipeRefused):
        run_job(spec.model_copy(update={"recipe": {**_RECIPE, "batch_rows": 64}}), events.append)
    assert not any(isinstance(event, MetricEvent) for event in events)

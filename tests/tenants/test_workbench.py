# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from workshop_builders import small_job, tiny_base

from model_core.errors import BundleRefused, CheckpointInvalid, DatasetRefused, DigestMismatch, RecipeRefused
from model_core.network.checkpoint import load_expert_folder
from model_core.packing.canonical import digest_file
from model_core.packing.manifest import BaseManifest, parse_expert_manifest
from model_core.packing.safetensors_header import read_header
from model_core.packing.tensors import expert_tensor_shapes
from tenants.workshop.protocol import (
    OUTPUT_FILES,
    ChildEvent,
    DoneEvent,
    ErrorEvent,
    JobSpec,
    MetricEvent,
    PhaseEvent,
    parse_event,
)
from tenants.workshop.workbench import run_job

_RECIPE: dict[str, bool | int | float | str] = {
    "steps": 20,
    "batch_rows": 2,
    "sequence_tokens": 32,
    "learning_rate": 5e-3,
    "precision": "fp32",
    "checkpoint_every": 4,
    "fit_tokens": 64,
    "seed": 5,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny sealed base."""
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def spec(base: Any, tmp_path: Path) -> JobSpec:
    """A job over forty small documents."""
    return small_job(base, tmp_path, _RECIPE)


def _output(spec: JobSpec) -> dict[str, bytes]:
    return {name: (Path(spec.output_folder) / name).read_bytes() for name in OUTPUT_FILES}


def _moved(spec: JobSpec, folder: Path) -> JobSpec:
    return spec.model_copy(update={"work_folder": str(folder), "output_folder": str(folder / "out")})


def test_a_job_leaves_a_whole_unsealed_bundle(spec: JobSpec, base: Any) -> None:
    """The output is exactly three files; manifest, digests, shapes and loading agree; no text leaks."""
    events: list[ChildEvent] = []
    outcome = run_job(spec, events.append)
    output = Path(spec.output_folder)
    assert sorted(path.name for path in output.iterdir()) == sorted(OUTPUT_FILES)
    manifest = parse_expert_manifest((output / "manifest.json").read_bytes())
    assert outcome.manifest_digest == manifest.digest
    assert isinstance(events[-1], DoneEvent)
    assert events[-1].manifest_digest == manifest.digest
    assert manifest.files == {
        name: digest_file(output / name) for name in ("expert.safetensors", "metrics.jsonl")
    }
    with (output / "expert.safetensors").open("rb") as stream:
        header = read_header(stream, (output / "expert.safetensors").stat().st_size)
    assert header.shapes() == expert_tensor_shapes(manifest)
    assert isinstance(base.manifest, BaseManifest)
    load_expert_folder(output, base.digest, base.manifest.shape)
    assert manifest.data_card.license == "MIT"
    assert manifest.metrics["heldout_bits_per_byte_pair"] < manifest.metrics["heldout_bits_per_byte_base"]
    assert b"struct" not in (output / "manifest.json").read_bytes()
    phases = [event.name for event in events if isinstance(event, PhaseEvent)]
    assert phases == ["read", "tokenise", "train", "gates", "calibrate", "evaluate", "pack"]
    losses = [event for event in events if isinstance(event, MetricEvent) and event.name == "loss"]
    assert [event.step for event in losses] == list(range(1, 21))


def test_a_job_writes_the_manifest_of_the_kind_that_its_recipe_asks_for(spec: JobSpec, base: Any) -> None:
    """A low-rank recipe leaves factors, the manifest that names them, and the share that they keep."""
    changes = {"steps": 2, "checkpoint_every": 2, "expert_kind": "low_rank", "expert_rank": 3}
    run_job(spec.model_copy(update={"recipe": {**_RECIPE, **changes}}), lambda _event: None)
    output = Path(spec.output_folder)
    manifest = parse_expert_manifest((output / "manifest.json").read_bytes())
    assert (manifest.expert_kind, manifest.rank, manifest.pieces, manifest.gated) == (
        "low_rank",
        3,
        None,
        True,
    )
    assert manifest.d_ffn == base.manifest.shape.d_ffn
    weights = output / "expert.safetensors"
    with weights.open("rb") as stream:
        header = read_header(stream, weights.stat().st_size)
    assert header.shapes() == expert_tensor_shapes(manifest)
    assert 0 < manifest.metrics["kept_energy"] < 1
    assert manifest.metrics["expert_bytes"] == sum(
        entry.end - entry.begin for entry in header.tensors.values()
    )
    load_expert_folder(output, base.digest, base.manifest.shape)


def test_a_stopped_job_resumes_to_the_same_bytes(spec: JobSpec, tmp_path: Path) -> None:
    """A job that was stopped and started again writes the bytes of an uninterrupted one."""
    calls = iter([False] * 5 + [True] + [False] * 100)
    assert not run_job(spec, lambda _event: None, lambda: next(calls)).finished
    assert not Path(spec.output_folder).exists()
    again = run_job(spec, lambda _event: None)
    assert again.resumed_from == 6
    whole = _moved(spec, tmp_path / "other")
    run_job(whole, lambda _event: None)
    assert _output(spec) == _output(whole)


def test_bad_jobs_are_refused_by_kind(spec: JobSpec, base: Any, tmp_path: Path) -> None:
    """Recipe, data set, base and work folder each have their own refusal, before anything is written."""

    def refused(kind: type[Exception], **changes: Any) -> None:
        with pytest.raises(kind):
            run_job(spec.model_copy(update=changes), lambda _event: None)
        assert not Path(spec.output_folder).exists()

    refused(RecipeRefused, recipe={"steps": -1})
    refused(RecipeRefused, recipe={"code": "import os"})
    refused(RecipeRefused, recipe={**_RECIPE, "seed": "x"})
    refused(RecipeRefused, recipe={**_RECIPE, "sequence_tokens": 129})
    refused(DatasetRefused, dataset_file=str(tmp_path / "none"))
    (tmp_path / "one.jsonl").write_text(json.dumps({"id": "a", "text": "int " * 400}) + "\n")
    refused(DatasetRefused, dataset_file=str(tmp_path / "one.jsonl"))
    refused(DigestMismatch, base_digest="sha256:" + "1" * 64)
    refused(BundleRefused, base_folder=str(tmp_path))
    calls = iter([True] * 9)
    run_job(spec, lambda _event: None, lambda: next(calls))
    refused(CheckpointInvalid, recipe={**_RECIPE, "seed": 6})


def _child() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tenants.workshop.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _tell(child: subprocess.Popen[bytes], line: bytes) -> None:
    assert child.stdin is not None
    child.stdin.write(line)
    child.stdin.flush()


def test_the_child_survives_sigkill_and_sigterm(spec: JobSpec, tmp_path: Path) -> None:
    """Killed hard, then asked to stop, then left alone, three attempts make the bytes of one."""
    long = spec.model_copy(update={"recipe": {**_RECIPE, "steps": 120, "learning_rate": 1e-3}})
    child = _child()
    _tell(child, long.to_line())
    assert child.stdout is not None
    for line in child.stdout:
        event = parse_event(line)
        if isinstance(event, MetricEvent) and event.step >= 9:
            break
    child.kill()
    child.wait()
    child = _child()
    _tell(child, long.to_line())
    assert child.stdout is not None
    first = next(event for event in map(parse_event, child.stdout) if isinstance(event, MetricEvent))
    assert first.step > 4
    child.send_signal(signal.SIGTERM)
    rest = child.communicate(timeout=60)[0].splitlines()
    assert child.returncode == 3
    assert not any(isinstance(parse_event(line), DoneEvent | ErrorEvent) for line in rest)
    began = time.monotonic()
    run_job(long, lambda _event: None)
    whole = _moved(long, tmp_path / "other")
    run_job(whole, lambda _event: None)
    assert _output(long) == _output(whole)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("line", "code"), [(b"rubbish\n", "workshop_protocol_violated"), (b"", "workshop_protocol_violated")]
)
def test_the_child_refuses_a_line_that_is_no_job(line: bytes, code: str) -> None:
    """A malformed job line ends the child with status 1 and one error event that does not quote it."""
    child = _child()
    output = child.communicate(line, timeout=60)[0].splitlines()
    event = parse_event(output[-1])
    assert child.returncode == 1
    assert isinstance(event, ErrorEvent)
    assert event.code == code
    assert "rubbish" not in event.sentence

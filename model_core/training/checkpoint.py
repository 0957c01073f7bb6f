# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: trained tensors, optimizer state, random state and position, never pickled.

A checkpoint is a folder ``step-<n>`` of two safetensors files and a JSON file that names their digests. It is
written beside its place, flushed, and renamed, so that a kill at any instant leaves the one before. The two
newest are kept. A checkpoint is read only by the run that wrote it: same recipe, data and starting weights.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model_core.errors import CheckpointInvalid
from model_core.packing.canonical import digest_file
from model_core.training.distributed import placed_like, whole

_KEPT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What a run needs to go on as if it had never stopped.

    Attributes:
        step: optimizer steps done.
        identity: digests of recipe, data and starting weights that must be equal to resume.
        precision: number format that was chosen.
        best_loss: running figures of the divergence guard.
        tensors: trained parameters by name.
        optimizer: optimizer state, ``<parameter>/<slot>``.
        random_state: torch's CPU generator state, uint8.
        data_order: digest of the rows that the steps so far have read, in their order.
        machine: what the last bits of those steps depend on (see ``machine_of``).
        strayed: names of what has changed of it since the run began.
    """

    step: int
    identity: dict[str, str]
    precision: str
    guard: dict[str, float]
    tensors: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random_state: Tensor
    data_order: str = ""
    machine: dict[str, str] = field(default_factory=dict)
    strayed: tuple[str, ...] = ()


def capture_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Flattens optimizer state into named tensors."""
    flat: dict[str, Tensor] = {}
    for name, parameter in names.items():
        for slot, value in optimizer.state.get(parameter, {}).items():
            flat[f"{name}/{slot}"] = whole(torch.as_tensor(value))
    return flat


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter], flat: Mapping[str, Tensor]
) -> None:
    """Puts captured state back; parameters without state start fresh."""
    for key, value in flat.items():
        name, slot = key.rsplit("/", 1)
        if name not in names:
            raise CheckpointInvalid("The checkpoint holds state of an unknown parameter.", parameter=name)
        parameter = names[name]
        # A step count has no shape and stays where the optimizer counts.
        optimizer.state[parameter][slot] = placed_like(value, parameter) if value.dim() else value.clone()


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes ``folder/step-<n>`` durably and drops all but the newest two.

    Returns:
        The checkpoint's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, staging = folder / f"step-{checkpoint.step:08d}", folder / f".staging-{checkpoint.step:08d}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    save_file(checkpoint.tensors, staging / "trained.safetensors")
    save_file(
        {**checkpoint.optimizer, "random/state": checkpoint.random_state}, staging / "optimizer.safetensors"
    )
    files = {name: digest_file(staging / name) for name in ("trained.safetensors", "optimizer.safetensors")}
    state = {
        "schema_version": 1,
        "step": checkpoint.step,
        "identity": checkpoint.identity,
        "precision": checkpoint.precision,
        "guard": checkpoint.guard,
        "data_order": checkpoint.data_order,
        "machine": checkpoint.machine,
        "strayed": list(checkpoint.strayed),
        "files": files,
    }
    (staging / "state.json").write_text(json.dumps(state, sort_keys=True, indent=1))
    for path in [*staging.iterdir(), staging]:
        _flush(path)
    shutil.rmtree(final, ignore_errors=True)
    staging.rename(final)
    _flush(folder)
    for old in checkpoints(folder)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def read_checkpoint(path: Path, identity: Mapping[str, str]) -> Checkpoint:
    """Reads a checkpoint and checks that its files are whole and that it is of this run.

    Raises:
        CheckpointInvalid: damaged, or of another recipe, data set or starting point.
    """
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_bytes())
        if any(digest_file(path / name) != digest for name, digest in state["files"].items()):
            raise CheckpointInvalid(
                "A checkpoint's file is damaged; an earlier one or a fresh start is needed."
            )
        tensors = load_file(path / "trained.safetensors")
        optimizer = load_file(path / "optimizer.safetensors")
        found = Checkpoint(
            step=int(state["step"]),
            identity=dict(state["identity"]),
            precision=str(state["precision"]),
            guard=dict(state["guard"]),
            tensors=tensors,
            random_state=optimizer.pop("random/state"),
            optimizer=optimizer,
            data_order=str(state.get("data_order", "")),
            machine=dict(state.get("machine", {})),
            strayed=tuple(state.get("strayed", ())),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointInvalid(
            "The checkpoint cannot be read; remove it to start from an earlier one.",
            reason=type(error).__name__,
        ) from error
    different = sorted(key for key in identity if found.identity.get(key) != identity[key])
    if different:
        raise CheckpointInvalid(
            f"The work folder holds a checkpoint of another run (different {', '.join(different)}). "
            "Use a fresh work folder.",
            different=different,
        )
    return found


def newest_checkpoint(folder: Path, identity: Mapping[str, str]) -> Checkpoint | None:
    """The newest readable checkpoint of this run; a damaged newest one yields to the one before.

    Raises:
        CheckpointInvalid: the newest readable one is of another run, or none of several can be read.
    """
    damaged: CheckpointInvalid | None = None
    for path in reversed(checkpoints(folder)):
        try:
            return read_checkpoint(path, identity)
        except CheckpointInvalid as error:
            if "different" in error.facts:
                raise
            damaged = error
    if damaged is not None:
        raise damaged
    return None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

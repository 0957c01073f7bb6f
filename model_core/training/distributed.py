# SPDX-License-Identifier: Apache-2.0
"""Several processes of one run: who reads which rows, how parameters are sharded, and what a checkpoint sees.

Every process takes its share of every pass, so that the rows of a step are the same at any number of
processes. On CPU each process holds the whole model; sharding it needs GPUs. A checkpoint always holds whole
tensors, so that a run can go on with another number of processes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from accelerate.utils import FullyShardedDataParallelPlugin, patch_environment
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from model_core.errors import RecipeRefused


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharding:
    """How parameters, gradients and optimizer state are split over GPUs (FSDP, version 2).

    Attributes:
        wrapped: classes of modules that are gathered one at a time; they must be called as modules. What is
            outside of them (embeddings, norms, router rows) is gathered once a step.
        reshard_after_forward: whether a module's parameters are let go between forward and backward.
        offload_to_cpu: whether shards rest in the memory of the host.
    """

    wrapped: tuple[str, ...] = ("Attention", "SwiGLU")
    reshard_after_forward: bool = True
    offload_to_cpu: bool = False


def fsdp_plugin(sharding: Sharding, device: torch.device) -> FullyShardedDataParallelPlugin:
    """Settings of accelerate for a sharded run.

    Parameters keep fp32 and autocast rounds inputs of products, as without sharding: rounding whole modules
    would round router rows.

    Args:
        sharding: what is wanted.
        device: of this process.

    Raises:
        RecipeRefused: the device is no GPU.
    """
    if device.type != "cuda":
        raise RecipeRefused(
            "Sharding parameters needs GPUs, and this process has none. Run several processes without "
            "sharding, or turn on recompute_activations to save memory.",
            fields=["sharding"],
        )
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=sharding.reshard_after_forward,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(sharding.wrapped),
        cpu_offload=CPUOffloadPolicy() if sharding.offload_to_cpu else False,
        cpu_ram_efficient_loading=False,
        activation_checkpointing=False,  # the objectives do it themselves, layer by layer
        mixed_precision_policy=MixedPrecisionPolicy(),
        state_dict_type="FULL_STATE_DICT",
    )


def share_of(rows: int, process: int, processes: int) -> slice:
    """The rows of a pass that one process reads.

    Raises:
        RecipeRefused: they cannot be shared out evenly.
    """
    if rows % processes:
        raise RecipeRefused(
            f"A pass of {rows} rows cannot be shared by {processes} processes. Make batch_rows a multiple of "
            f"{processes}.",
            fields=["batch_rows"],
        )
    share = rows // processes
    return slice(process * share, (process + 1) * share)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded (every process must ask at once), on CPU."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().clone().contiguous()


def placed_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of another, and sharded as that one is."""
    there = value.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(there, like.device_mesh, like.placements)
    return there.clone()


def run_processes(target: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Calls a function in several new processes of this machine that can train together, and waits.

    Args:
        target: importable; called with the arguments in every process.
        processes: how many.
        *arguments: picklable.

    Raises:
        torch.multiprocessing.ProcessRaisedException: one of them failed; the others are ended.
    """
    with tempfile.TemporaryDirectory(prefix="meet-") as folder:
        torch.multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
            _enter, (target, processes, str(Path(folder) / "store"), arguments), processes
        )


def _enter(
    process: int, target: Callable[..., None], processes: int, store: str, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    # accelerate reads the place of a process from its environment, as launchers set it; gloo and OpenMP read
    # theirs. One machine: its processes need no interface but loopback.
    place = {
        "RANK": process,
        "LOCAL_RANK": process,
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": torch.get_num_threads(),
    }
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    with patch_environment(**place):
        torch.distributed.init_process_group(
            backend, init_method=f"file://{store}", rank=process, world_size=processes
        )
        try:
            target(*arguments)
        finally:
            torch.distributed.destroy_process_group()

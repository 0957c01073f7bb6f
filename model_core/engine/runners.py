# SPDX-License-Identifier: Apache-2.0
"""The best runner that a machine offers for a bank: compiled kernels where they can be had, torch elsewhere.

On a CUDA device the bank stays on CPU, mapped from its files, and the runner holds what it multiplies.

Decides by what is there (device, dtype, a compiler) and says why. Knows nothing of sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from model_core.engine.capture import CudaGraphs
from model_core.engine.native.compiler import NoLibrary
from model_core.engine.native.library import load_library
from model_core.engine.native.step import NativeRunner
from model_core.engine.runner import Runner
from model_core.engine.sharded.gang import Gang
from model_core.engine.sharded.runner import ShardedRunner
from model_core.engine.sharded.slices import check_ranks
from model_core.engine.slot_runner import SlotRunner
from model_core.engine.steady import SteadyRunner
from model_core.engine.torch_runner import TorchRunner, page_bytes
from model_core.engine.weights import PackedWeights, can_pack
from model_core.network.bank import ExpertBank

_COMPILED = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedRunner:
    """A runner and how it came to be.

    Attributes:
        runner: computes steps over the bank.
        said: one line for a person: what computes, and why not the compiled kernels where they do not.
        compile_s: how long compiling took; 0 where nothing was compiled now.
        gang: the processes that compute, where there are several; whoever opened the runner closes it.
    """

    runner: Runner
    said: str
    compile_s: float = 0.0
    gang: Gang | None = None

    @property
    def alive(self) -> bool:
        """Whether all that compute are still there."""
        return self.gang is None or self.gang.alive

    def close(self) -> None:
        """Ends the processes that compute, where there are several; the runner is of no use then."""
        if self.gang is not None:
            self.gang.close()


def open_runner(
    bank: ExpertBank,
    *,
    n_pages: int,
    n_tails: int,
    kernels: Path | None,
    weights: Path | None = None,
    threads: int | None = None,
    deterministic: bool = False,
    shards: int = 1,
    shard_device: str = "cpu",
    wanted_device: str = "cpu",
) -> OpenedRunner:
    """Opens a runner over a bank.

    Args:
        bank: weights; the runner is made for its device and dtype.
        n_pages: pages of keys and values.
        n_tails: places for prefix sums: sequences that run at the same time.
        kernels: where compiled kernels are kept; None computes with torch.
        weights: where packed weights are kept for all processes of the machine; None packs into memory.
        threads: that compute; None takes as many as torch.
        deterministic: where the kernels are missing, prefer torch's slower steps that promise the same.
        shards: processes that share the arithmetic, each with its part of all weights; they use torch.
        shard_device: ``cpu``, or ``cuda`` for a device of its own for each of them.
        wanted_device: ``cpu``, or ``cuda`` to compute there where this process sees such a device; without
            one CPU computes, and it is said. Kernels, ``weights`` and ``deterministic`` are for CPU.

    Raises:
        RanksRefused: the base cannot be spread over so many processes.
        RankLost: one of them did not start.
    """
    if shards > 1:
        check_ranks(bank.shape, shards)
        gang = Gang.start(shards, device=shard_device, threads=threads or torch.get_num_threads())
        try:
            spread = ShardedRunner(
                bank, gang, n_pages=n_pages, n_tails=n_tails, folder=weights, deterministic=deterministic
            )
        except BaseException:
            gang.close()
            raise
        return OpenedRunner(runner=spread, said=f"torch in {shards} processes ({shard_device})", gang=gang)
    device = bank.decoder.embed.weight.device.type
    if wanted_device == "cuda" and torch.cuda.is_available():
        there = torch.device("cuda", torch.cuda.current_device())
        slots = SlotRunner(bank, n_pages=n_pages, n_tails=n_tails, device=there, capturer=CudaGraphs(there))
        return OpenedRunner(runner=slots, said=f"torch on {torch.cuda.get_device_name(there)}")
    missing = "this process sees no CUDA device; " if wanted_device == "cuda" else ""
    if kernels is None:
        why = "no folder for compiled kernels was given"
    elif device != "cpu":
        why = f"the weights are on {device}"
    elif bank.dtype not in _COMPILED:
        why = f"there are no compiled kernels for {bank.dtype}"
    else:
        library = load_library(kernels)
        if not isinstance(library, NoLibrary):
            runner = NativeRunner(
                bank, library, n_pages=n_pages, n_tails=n_tails, threads=threads, folder=weights
            )
            built = library.built
            return OpenedRunner(
                runner=runner, said=f"compiled kernels ({missing}{built.compiler})", compile_s=built.compile_s
            )
        why = library.reason
    why = missing + why
    if deterministic:
        steady = SteadyRunner(bank, n_pages=n_pages, n_tails=n_tails)
        return OpenedRunner(runner=steady, said=f"torch (row by row; {why})")
    packs = device == "cpu" and can_pack(bank.dtype)
    plain = TorchRunner(
        bank, n_pages=n_pages, n_tails=n_tails, weights=PackedWeights(bank) if packs else None
    )
    return OpenedRunner(runner=plain, said=f"torch ({'packed weights; ' if packs else ''}{why})")


def pages_within(
    bank: ExpertBank, *, size_bytes: int, max_context: int, page_size: int = 16, shards: int = 1
) -> int:
    """How many pages of keys and values a memory budget holds; always enough for one whole sequence.

    Args:
        bank: whose shape and dtype decide what a page takes.
        size_bytes: the budget.
        max_context: positions of the longest sequence.
        page_size: positions in a page.
        shards: processes that share the budget: each holds keys and values of its heads, and all prefix sums.
    """
    sums_bytes = 8 * bank.shape.d_model * bank.shape.n_layers
    taken_bytes = page_bytes(bank, page_size) + (shards - 1) * sums_bytes
    return max(-(-max_context // page_size), size_bytes // taken_bytes)

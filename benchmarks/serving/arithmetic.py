# SPDX-License-Identifier: Apache-2.0
"""What computes our side: the compiled kernels where they can be built, torch otherwise."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model_core.engine.engine import PAGE_SIZE, Engine
from model_core.engine.native.compiler import NoLibrary, build_library
from model_core.engine.native.library import Library, Pool, load_library
from model_core.engine.runners import open_runner
from model_core.engine.torch_runner import TorchRunner
from model_core.network.bank import ExpertBank


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """How large an engine is.

    Attributes:
        sequences: that compute at the same time.
        context: longest prompt with its new tokens.
        prefill_tokens: of prompts per step.
    """

    sequences: int
    context: int
    prefill_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """How engines are made.

    Attributes:
        native: whether compiled kernels compute.
        said: which, or why there are none.
        compile_s: how long compiling them anew takes.
        kernels: folder of the compiled kernels.
        make: makes an engine over a bank.
    """

    native: bool
    said: str
    compile_s: float | None = None
    kernels: Path | None = None
    make: Callable[[ExpertBank, Room], Engine]

    def pool(self, threads: int) -> Pool | None:
        """Threads that share compiled products; None where there are none."""
        library = None if self.kernels is None else load_library(self.kernels)
        return Pool(library, threads) if isinstance(library, Library) else None


def choose(folder: Path, *, threads: int, torch_only: bool = False) -> Arithmetic:
    """Compiled kernels if this machine can build them; they are compiled anew, so that the time is known.

    Args:
        folder: where compiled kernels are kept; emptied.
        threads: that compute.
        torch_only: whether torch computes anyway.
    """
    if torch_only:
        return _arithmetic(None, threads, said="torch (as asked)")
    shutil.rmtree(folder, ignore_errors=True)
    built = build_library(folder)
    if isinstance(built, NoLibrary):
        return _arithmetic(None, threads, said=f"torch ({built.reason})")
    said = f"compiled kernels ({built.compiler})"
    return _arithmetic(folder, threads, said=said, compile_s=built.compile_s)


def _arithmetic(
    kernels: Path | None, threads: int, *, said: str, compile_s: float | None = None
) -> Arithmetic:
    return Arithmetic(
        native=kernels is not None,
        said=said,
        compile_s=compile_s,
        kernels=kernels,
        make=lambda bank, room: _engine(bank, room, kernels, threads),
    )


def _engine(bank: ExpertBank, room: Room, kernels: Path | None, threads: int) -> Engine:
    """An engine as a model host opens it, but with packed weights in memory of its own."""
    pages = room.sequences * -(-room.context // PAGE_SIZE)
    opened = open_runner(bank, n_pages=pages, n_tails=room.sequences, kernels=kernels, threads=threads)
    if kernels is not None and isinstance(opened.runner, TorchRunner):
        raise RuntimeError(f"Compiled kernels were there and are not used: {opened.said}.")
    return Engine(
        bank,
        max_sequences=room.sequences,
        max_context=room.context,
        prefill_tokens=room.prefill_tokens,
        runner=opened.runner,
    )

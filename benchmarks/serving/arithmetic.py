# SPDX-License-Identifier: Apache-2.0
"""What computes our side: the compiled kernels where they can be built, torch otherwise."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model_core.engine.engine import Engine
from model_core.engine.native.compiler import NoLibrary, build_library
from model_core.engine.native.library import Library, load_library
from model_core.engine.native.step import NativeRunner
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
        make: makes an engine over a bank.
    """

    native: bool
    said: str
    compile_s: float | None = None
    make: Callable[[ExpertBank, Room], Engine]


def choose(folder: Path, *, threads: int, torch_only: bool = False) -> Arithmetic:
    """Compiled kernels if this machine can build them.

    They are compiled once more than needed, so that the time this takes is known whatever the folder holds.

    Args:
        folder: where compiled kernels are kept.
        threads: that compute.
        torch_only: whether torch computes anyway.
    """
    if torch_only:
        return _by_torch("as asked")
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as fresh:
        built = build_library(Path(fresh))
    library = load_library(folder)
    if isinstance(built, NoLibrary) or isinstance(library, NoLibrary):
        return _by_torch((built if isinstance(built, NoLibrary) else library).reason)  # type: ignore[union-attr]
    return Arithmetic(
        native=True,
        said=f"compiled kernels ({built.compiler})",
        compile_s=built.compile_s,
        make=lambda bank, room: _native_engine(bank, room, library, threads),
    )


def _by_torch(why: str) -> Arithmetic:
    return Arithmetic(native=False, said=f"torch ({why})", make=_torch_engine)


def _torch_engine(bank: ExpertBank, room: Room) -> Engine:
    return Engine(
        bank,
        max_sequences=room.sequences,
        max_context=room.context,
        prefill_tokens=room.prefill_tokens,
    )


def _native_engine(bank: ExpertBank, room: Room, library: Library, threads: int) -> Engine:
    pages = room.sequences * -(-room.context // NativeRunner.page_size)
    runner = NativeRunner(bank, library, n_pages=pages, n_tails=room.sequences, threads=threads)
    return Engine(
        bank,
        max_sequences=room.sequences,
        max_context=room.context,
        prefill_tokens=room.prefill_tokens,
        runner=runner,
    )

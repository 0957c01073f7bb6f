# SPDX-License-Identifier: Apache-2.0
"""One world with everybody who serves it, made when it is first asked for."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.serving import huggingface
from benchmarks.serving.arithmetic import Arithmetic, Room
from benchmarks.serving.case import Cell, Format, Sizes
from benchmarks.serving.gguf_file import write_gguf
from benchmarks.serving.llama import LlamaModel
from benchmarks.serving.ours import Ask, Ours, surplus_tokens
from benchmarks.serving.trace import Trace
from benchmarks.serving.worlds import make_world
from model_core.engine.native.library import Pool
from model_core.network.bank import ExpertBank

PREFILL_TOKENS = 1024


class Stage:
    """A world and its sides.

    Args:
        sizes: of the model.
        number_format: of its weights.
        arithmetic: what computes our side.
        threads: of llama.cpp and of our products; torch's are set by the caller.
    """

    def __init__(self, sizes: Sizes, number_format: Format, *, arithmetic: Arithmetic, threads: int) -> None:
        self.sizes, self.number_format = sizes, number_format
        self._arithmetic, self._threads = arithmetic, threads
        self._folder = Path(tempfile.mkdtemp(prefix="bench-serving-"))
        self.world = make_world(sizes, number_format)
        self.bank: ExpertBank = self.world.bank()
        self._open: list[Any] = []

    @cached_property
    def pool(self) -> Pool | None:
        """Threads of our compiled products; None where there are none."""
        pool = self._arithmetic.pool(self._threads)
        if pool is not None:
            self._open.append(pool)
        return pool

    @cached_property
    def huggingface(self) -> Any:
        """What transformers holds; its file is gone once it is loaded."""
        folder = self._folder / "folder"
        self.world.write_folder(folder)
        model = huggingface.open_folder(folder)
        model.requires_grad_(requires_grad=False)
        # Copies, where weights are mapped from the file.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        shutil.rmtree(folder)
        return model

    @cached_property
    def llama(self) -> LlamaModel:
        """llama.cpp's model."""
        path = self._folder / "model.gguf"
        write_gguf(self.world, path)
        model = LlamaModel(path, number_format=self.number_format, threads=self._threads)
        self._open.append(model)
        return model

    def ours(self, cell: Cell) -> Ours:
        """Our engine, as large as a cell needs it."""
        surplus = surplus_tokens(cell.concurrency, cell.prompt_tokens, PREFILL_TOKENS)
        return Ours(
            self.bank,
            arithmetic=self._arithmetic,
            room=Room(
                sequences=cell.concurrency,
                context=min(self.sizes.positions, cell.prompt_tokens + cell.new_tokens + surplus),
                prefill_tokens=PREFILL_TOKENS,
            ),
            top_k=self.sizes.top_k,
        )

    def ask(self, prompts: Sequence[Sequence[int]]) -> list[Ask]:
        """Prompts that every expert may compute."""
        return [Ask(prompt=prompt, experts=self.bank.digests) for prompt in prompts]

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int, experts: Any) -> Trace:
        """A turn of Hugging Face ``generate``."""
        return huggingface.generate(self.huggingface, prompts, new_tokens, experts=experts)

    def generate_batch(self, prompts: Sequence[Sequence[int]], new_tokens: int, experts: Any) -> Trace:
        """A turn of Hugging Face ``generate_batch``."""
        return huggingface.generate_batch(self.huggingface, prompts, new_tokens, experts=experts)

    def close(self) -> None:
        """Lets everything go."""
        for model in self._open:
            model.close()
        shutil.rmtree(self._folder, ignore_errors=True)
